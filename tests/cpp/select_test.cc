// Which algorithm serves a call that names none.
#include "plan/select.h"

#include "check.h"
#include "plan/plan.h"

using namespace pycomm;

namespace {

constexpr std::int64_t kShort = 1 << 10, kLong = 64 << 20;

// How many nodes so many ranks may lie on: one where all are mapped.
std::vector<int> nodes_of(int size, bool mapped) {
  if (mapped) return {1};
  return size > 2 ? std::vector<int>{2, size} : std::vector<int>{size};
}

// A choice for each combination of what may matter.
template <class Visit>
void for_every_choice(Visit visit) {
  for (int collective = 0; collective < kCollectiveCount; ++collective)
    for (int size : {1, 2, 3, 16, 17, 100})
      for (std::int64_t bytes : {std::int64_t{0}, kShort, kLong})
        for (bool rounds : {false, true})
          for (bool mapped : {false, true})
            for (bool uneven : {false, true})
              for (int nodes : nodes_of(size, mapped))
                visit(
                    Choice{static_cast<Collective>(collective), size, bytes, rounds, mapped, uneven, nodes});
}

const Algorithm& chosen(const Choice& choice) {
  return algorithm_named(choice.collective, select_algorithm(choice));
}

}  // namespace

TEST(what_is_chosen_serves_the_call) {
  for_every_choice([](const Choice& choice) {
    const Algorithm& algorithm = chosen(choice);
    const bool pair = choice.collective == Collective::send || choice.collective == Collective::recv;
    CHECK(algorithm.uneven || !choice.uneven);
    CHECK(choice.mapped || !algorithm.mapped);
    CHECK(!algorithm.supports || algorithm.supports(choice.size) || (pair && choice.size == 1));
  });
}

TEST(every_size_of_what_reduces_is_rounded_once_for_up_to_16_ranks) {
  for_every_choice([](const Choice& choice) {
    if (!reduces(choice.collective) || !choice.rounds || choice.size > 16) return;
    const std::string name = select_algorithm(choice);
    const bool of_nodes = name == "hierarchical_direct" && choice.nodes < choice.size;  // and once on a node
    const bool gathered = name == "scatter_gather" && choice.collective == Collective::reduce;
    CHECK(name == "direct" || of_nodes || gathered);
  });
}

TEST(peers_whose_memory_is_addressable_are_reached_there) {
  for_every_choice([](const Choice& choice) {
    const bool pair = choice.collective == Collective::send || choice.collective == Collective::recv;
    if (!choice.mapped || pair || choice.collective == Collective::barrier) return;
    if (reduces(choice.collective) && choice.rounds) return;
    if (choice.collective == Collective::all_to_all && choice.uneven) return;  // offsets there are unknown
    CHECK_EQ(select_algorithm(choice), "mapped");
  });
}

TEST(short_vectors_of_many_ranks_take_few_rounds_and_long_ones_few_bytes) {
  const auto name = [](Collective collective, std::int64_t bytes, int size = 64, bool uneven = false) {
    return select_algorithm({collective, size, bytes, false, false, uneven, size});
  };
  CHECK_EQ(name(Collective::all_reduce, kShort), "recursive_doubling");
  CHECK_EQ(name(Collective::all_reduce, kLong), "ring");
  CHECK_EQ(name(Collective::reduce, kShort), "binomial");
  CHECK_EQ(name(Collective::reduce, kLong), "ring");
  CHECK_EQ(name(Collective::all_gather, kShort), "bruck");
  CHECK_EQ(name(Collective::all_gather, kLong), "ring");
  for (Collective collective : {Collective::gather, Collective::scatter}) {
    CHECK_EQ(name(collective, kShort), "binomial");
    CHECK_EQ(name(collective, kLong), "direct");
    CHECK_EQ(name(collective, kShort, 8), "direct");
  }
  CHECK_EQ(name(Collective::all_to_all, kShort), "bruck");
  CHECK_EQ(name(Collective::all_to_all, kShort, 64, true), "direct");
  CHECK_EQ(name(Collective::all_to_all, kLong), "direct");
}

TEST(several_nodes_of_several_ranks_add_up_within_nodes_first) {
  const auto name = [](Collective collective, std::int64_t bytes, int nodes, bool rounds = false) {
    return select_algorithm({collective, 8, bytes, rounds, nodes == 1, false, nodes});
  };
  for (Collective collective : {Collective::all_reduce, Collective::reduce_scatter, Collective::all_gather}) {
    CHECK_EQ(name(collective, kLong, 4), "hierarchical");
    CHECK_EQ(name(collective, kShort, 4), "hierarchical_direct");
    CHECK_EQ(name(collective, kLong, 4, true), "hierarchical_direct");
  }
  for (Collective collective : {Collective::broadcast, Collective::reduce}) {
    CHECK_EQ(name(collective, kLong, 4), "hierarchical");
    CHECK_EQ(name(collective, kShort, 4), "binomial");
  }
  CHECK_EQ(name(Collective::all_reduce, kLong, 8), "ring");
  CHECK_EQ(name(Collective::all_reduce, kLong, 1), "mapped");
}
