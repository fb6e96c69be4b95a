// Which algorithm serves a call that names none.
#include "plan/select.h"

#include <cmath>

#include "check.h"

using namespace pycomm;

namespace {

constexpr std::int64_t kShort = 1 << 10, kLong = 64 << 20;
constexpr std::int64_t kSegment = 1 << 17;

std::shared_ptr<const Selector::Settings> settings(std::string_view rules = "",
                                                   const std::string& table = "") {
  return std::make_shared<const Selector::Settings>(Selector::Settings{Rules(rules, "rules"), Table(table)});
}

Selector selector(int size, const std::string& kind = "shm", std::string_view rules = "",
                  const std::string& table = "") {
  return {Links(size, kind), {}, 1, kSegment, settings(rules, table)};
}

std::vector<Order> orders_of(Collective collective, int size) {
  std::vector<Order> orders = {Order::any};
  for (const Order order : {Order::rank, Order::tree})
    if (reduces(collective) && exists(order, size)) orders.push_back(order);
  return orders;
}

// A choice for each combination of what may matter.
template <class Visit>
void for_every_choice(Visit visit) {
  for (int size : {1, 2, 3, 16, 17, 100}) {
    Selector chooses = selector(size);
    for (int collective = 0; collective < kCollectiveCount; ++collective)
      for (std::int64_t bytes : {std::int64_t{0}, kShort, kLong})
        for (bool half : {false, true})
          for (bool lossy : {false, true})
            for (bool mapped : {false, true})
              for (bool uneven : {false, true})
                for (Order order : orders_of(static_cast<Collective>(collective), size))
                  visit(chooses, Choice{.collective = static_cast<Collective>(collective),
                                        .size = size,
                                        .bytes = bytes,
                                        .half = half,
                                        .lossy = lossy,
                                        .wire_ratio = lossy ? 0.5 : 1,
                                        .mapped = mapped,
                                        .uneven = uneven,
                                        .order = order});
  }
}

bool is_pair(Collective collective) {
  return collective == Collective::send || collective == Collective::recv;
}

// "ring", of ranks with a network between any two.
std::string far_choice(Collective collective, std::int64_t bytes, int size = 64, bool uneven = false) {
  Selector chooses = selector(size, "mpi/network");
  return short_name(
      chooses.select({.collective = collective, .size = size, .bytes = bytes, .uneven = uneven}));
}

const std::string kTable =
    "group 2 2 shm\n"
    "times all_reduce 4 ring 1024 1e-6 1048576 1e-3\n"
    "times all_reduce 4 direct 1024 2e-6 1048576 1e-4\n";

}  // namespace

TEST(what_is_chosen_serves_the_call) {
  for_every_choice([](Selector& chooses, const Choice& choice) {
    if (is_pair(choice.collective) && choice.size == 1) return;
    if (choice.lossy && (choice.uneven || !reduces(choice.collective))) return;
    CHECK_EQ(lacks(chooses.select(choice), choice), "", "for ", name_of(choice.collective), " on ",
             choice.size);
  });
}

TEST(every_size_of_what_reduces_is_rounded_once_for_up_to_16_ranks) {
  for_every_choice([](Selector& chooses, const Choice& choice) {
    if (!reduces(choice.collective) || !choice.rounds() || choice.size > 16) return;
    CHECK(Costing(chooses.select(choice), chooses.links()).rounds_once(choice.lossy));
  });
}

TEST(an_algorithm_that_passes_partial_sums_on_rounds_more_than_once) {
  for (const bool lossy : {false, true}) {
    const auto once = [&](Collective collective, const char* name, int size) {
      return Costing(algorithm_named(collective, name), Links(size, "shm")).rounds_once(lossy);
    };
    for (const char* name : {"ring", "recursive_doubling", "halving_doubling"}) {
      CHECK(!once(Collective::all_reduce, name, 4));
      CHECK(once(Collective::all_reduce, name, 2));
    }
    CHECK(once(Collective::all_reduce, "direct", 4));
    CHECK(once(Collective::all_reduce, "mapped", 4));
    CHECK(once(Collective::reduce, "scatter_gather", 4));
    CHECK(!once(Collective::reduce, "binomial", 4));
  }
}

TEST(short_vectors_of_many_ranks_take_few_rounds_and_long_ones_few_bytes) {
  CHECK_EQ(far_choice(Collective::all_reduce, 0), "recursive_doubling");
  CHECK_EQ(far_choice(Collective::reduce, 0, 1024), "binomial");
  for (const Collective collective : {Collective::all_reduce, Collective::reduce}) {
    const std::string is_long = far_choice(collective, 1 << 30);
    CHECK(is_long != "binomial" && is_long != "recursive_doubling");
  }
  CHECK(far_choice(Collective::broadcast, kLong) != "direct");
  CHECK(far_choice(Collective::all_gather, 0) != "ring");
  CHECK_EQ(far_choice(Collective::all_to_all, kShort, 64, true), "direct");
  CHECK_EQ(far_choice(Collective::all_to_all, kLong), "direct");
}

TEST(ranks_choose_alike_whatever_each_asked_before) {
  for (int size : {3, 64}) {
    Selector one = selector(size, "mpi"), other = selector(size, "mpi");
    for (std::int64_t bytes = 1; bytes < 100 << 20; bytes = bytes * 5 / 3 + 1) {
      static_cast<void>(one.select({.size = size, .bytes = bytes + bytes / 9}));
      static_cast<void>(other.select({.size = size, .bytes = bytes - bytes / 9}));
    }
    for (std::int64_t bytes = 0; bytes < 100 << 20; bytes = bytes * 4 / 3 + 1)
      CHECK_EQ(one.select({.size = size, .bytes = bytes}).name,
               other.select({.size = size, .bytes = bytes}).name);
  }
}

TEST(rules_come_before_the_table_and_the_table_before_the_model) {
  const auto by = [](Selector chooses, std::int64_t bytes) {
    const Explanation out = chooses.explain({.size = 2, .bytes = bytes}, "");
    return text(short_name(*out.algorithm), " by ", kChosenByNames[static_cast<int>(out.by)]);
  };
  CHECK_EQ(by(selector(2, "shm", "all_reduce:halving_doubling<2K", kTable), 1024),
           "halving_doubling by PYCOMM_ALGO");
  CHECK_EQ(by(selector(2, "shm", "all_reduce:halving_doubling<2K", kTable), 1 << 20), "direct by table");
  CHECK_EQ(by(selector(2, "shm", "", kTable), 1024), "ring by table");
  CHECK(by(selector(2, "mpi", "", kTable), 1024).ends_with("by model"));
  CHECK(by(selector(3, "shm", "", kTable), 1024).ends_with("by model"));
}

TEST(a_table_is_read_between_its_sizes_and_beyond) {
  Selector chooses = selector(2, "shm", "", kTable);
  const auto predicted = [&](std::int64_t bytes, std::string_view name) {
    return chooses.explain({.size = 2, .bytes = bytes}, name).seconds;
  };
  const auto near = [](double got, double expected) { return std::abs(got / expected - 1) < 1e-9; };
  CHECK(near(predicted(8, "ring"), 1e-6));
  CHECK(near(predicted(1024, "direct"), 2e-6));
  CHECK(near(predicted(32768, "ring"), std::sqrt(1e-6 * 1e-3)));
  CHECK(near(predicted(4 << 20, "direct"), 4e-4));
}

TEST(what_the_table_did_not_measure_is_not_chosen_by_it) {
  Selector chooses = selector(2, "shm", "", kTable);
  for (const bool mapped : {false, true})
    CHECK_EQ(short_name(chooses.select({.size = 2, .bytes = 1024, .mapped = mapped})), "ring");
}

TEST(an_explanation_says_why_others_do_not_serve) {
  Selector chooses = selector(4);
  const Explanation out = chooses.explain({.size = 4, .bytes = kLong, .half = true, .mapped = false}, "");
  for (const Candidate& candidate : out.candidates) {
    if (short_name(*candidate.algorithm) == "mapped")
      CHECK_EQ(candidate.lacks, "peers' memory is not addressable");
    if (short_name(*candidate.algorithm) == "ring")
      CHECK(candidate.lacks.find("round once") != std::string::npos);
    if (short_name(*candidate.algorithm) == "direct")
      CHECK(candidate.lacks.empty() && candidate.seconds() > 0);
  }
  CHECK_THROWS(chooses.explain({.size = 4}, "rign"), InvalidArgument, "no algorithm 'rign'");
}

TEST(a_torn_table_is_refused_with_the_line) {
  for (const auto& [lines, part] : std::map<std::string, std::string>{
           {"times all_reduce 4 ring 8 1e-6", "expected a line that begins with group"},
           {"group 2 2", "expected ranks, ranks per machine and links"},
           {"group 2 2 shm\ntimes all_reduce 4 rign 8 1e-6", "no algorithm 'rign' for all_reduce"},
           {"group 2 2 shm\ntimes all_redux 4 ring 8 1e-6", "no collective 'all_redux'"},
           {"group 2 2 shm\ntimes all_reduce 4 ring 8 1e-6 8 1e-6", "growing bytes"},
           {"group 2 2 shm\ntimes all_reduce 4 ring 8", "pairs of bytes and seconds"},
           {"group 2 2 shm\ntimes all_reduce 4 ring 8 -1", "growing bytes"},
           {"group 2 2 shm\nprice shm.speed 1", "the name of a price"},
           {"group 2 2 shm\nprice call_s nan", "a number of 0 or more"},
           {"nonsense", "expected a line"}})
    CHECK_THROWS(Table{lines}, InvalidArgument, part);
}

TEST(several_nodes_of_several_ranks_add_up_within_nodes_first) {
  // Four nodes of two ranks, then each rank on its own, then one node.
  std::vector<std::string> rows;
  for (int rank = 0; rank < 8; ++rank) {
    std::vector<std::string> kinds;
    for (int peer = 0; peer < 8; ++peer) kinds.push_back(peer / 2 == rank / 2 ? "shm" : "mpi/network");
    rows.push_back(Links::row_text(kinds));
  }
  Selector pairs{Links(rows), {0, 0, 1, 1, 2, 2, 3, 3}, 1, kSegment, settings()};
  for (Collective collective : {Collective::all_reduce, Collective::reduce_scatter, Collective::all_gather})
    CHECK_EQ(short_name(pairs.select({.collective = collective, .size = 8, .bytes = kLong})), "hierarchical");
  const Choice lossy{.size = 8, .bytes = kLong, .lossy = true, .wire_ratio = 0.5};
  CHECK_EQ(short_name(pairs.select(lossy)), "hierarchical_direct");
  Selector apart{Links(8, "mpi/network"), {}, 1, kSegment, settings()};
  CHECK(!short_name(apart.select({.size = 8, .bytes = kLong})).starts_with("hierarchical"));
  Selector together{Links(8, "shm"), std::vector<int>(8, 0), 1, kSegment, settings()};
  CHECK_EQ(short_name(together.select({.size = 8, .bytes = kLong, .mapped = true})), "mapped");
}
