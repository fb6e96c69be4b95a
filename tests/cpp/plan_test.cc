#include "plan/plan.h"

#include <set>

#include "check.h"

using namespace pycomm;

namespace {

std::vector<const Algorithm*> all_algorithms() {
  return Registry<Algorithm>::instance().all();
}

std::string names_for(Collective collective) {
  std::string names;
  for (const Algorithm* algorithm : algorithms_for(collective)) names += short_name(*algorithm) + " ";
  return names;
}

Plan plan_for(Collective collective, std::string_view name, int rank, int size, int root = 0) {
  return algorithm_named(collective, name).plan({collective, rank, size, root});
}

}  // namespace

TEST(a_step_reads_as_one_line) {
  CHECK_EQ(to_text(send(4, 3, kInput)), "send chunk 3 of input to 4");
  CHECK_EQ(to_text(published(send(4, 3, kOutput))), "send chunk 3 of output to 4, published");
  CHECK_EQ(to_text(recv(2, 0, scratch(1))), "recv chunk 0 from 2 into scratch[1]");
  CHECK_EQ(to_text(as_final(recv_reduce(2, 1, kInput, kOutput))),
           "recv_reduce chunk 1 of input and from 2 into output, final");
  CHECK_EQ(to_text(copy(0, kInput, kOutput)), "copy chunk 0 of input into output");
  CHECK_EQ(to_text(reduce(0, kOutput, {scratch(0), kInput})),
           "reduce chunk 0 of scratch[0], input into output");
  CHECK_EQ(to_text(meet({1, 2})), "meet 1, 2");
  CHECK_EQ(to_text(reduce_from({0, 1}, 1, kInput, kOutput)),
           "reduce_from chunk 1 of input of 0, 1 into output");
  CHECK_EQ(to_text(store_to({0, 2}, 1, kOutput, kOutput)), "store_to chunk 1 of output into output of 0, 2");
}

TEST(a_plan_reads_stage_by_stage) {
  CHECK_EQ(to_text(plan_for(Collective::all_reduce, "ring", 0, 2)),
           "chunks 2\n"
           "stage 0\n"
           "  send chunk 1 of input to 1\n"
           "  recv_reduce chunk 0 of input and from 1 into output, final\n"
           "stage 1\n"
           "  send chunk 0 of output to 1, published\n"
           "  recv chunk 1 from 1 into output\n");
}

TEST(every_algorithm_that_we_ship_is_linked) {
  CHECK_EQ(names_for(Collective::all_reduce), "direct halving_doubling mapped recursive_doubling ring ");
  CHECK_EQ(names_for(Collective::reduce_scatter), "direct mapped ring ");
  CHECK_EQ(names_for(Collective::all_gather), "direct mapped ring ");
  CHECK_EQ(names_for(Collective::broadcast), "binomial direct mapped ");
  CHECK_EQ(names_for(Collective::barrier), "dissemination ");
  CHECK_EQ(names_for(Collective::send), "direct ");
  CHECK_EQ(names_for(Collective::recv), "direct ");
}

TEST(every_algorithm_is_found_by_its_short_name) {
  for (const Algorithm* algorithm : all_algorithms()) {
    const Collective collective = collective_of(*algorithm);
    CHECK_EQ(algorithm->name, std::string(name_of(collective)) + ":" + short_name(*algorithm));
    CHECK_EQ(&algorithm_named(collective, short_name(*algorithm)), algorithm);
    CHECK(!algorithm->summary.empty());
  }
}

TEST(an_unknown_algorithm_is_refused_with_those_that_there_are) {
  CHECK_THROWS(algorithm_named(Collective::all_gather, "halving_doubling"), InvalidArgument,
               "no algorithm 'halving_doubling' for all_gather; there are: direct, mapped, ring");
  CHECK_THROWS(algorithm_named(Collective::barrier, ""), InvalidArgument, "there are: dissemination");
}

TEST(a_name_without_its_collective_is_an_internal_error) {
  CHECK_THROWS(collective_of(Algorithm{.name = "ring", .summary = ""}), Error,
               "is not named 'collective:name'");
}

TEST(scattered_and_gathered_vectors_have_a_chunk_per_rank) {
  for (const Collective collective : {Collective::reduce_scatter, Collective::all_gather})
    for (const Algorithm* algorithm : algorithms_for(collective))
      for (int size = 1; size <= 9; ++size)
        CHECK_EQ(algorithm->plan({collective, size / 2, size, 0}).chunks, size, "in ", algorithm->name);
}

TEST(whole_vectors_travel_as_one_chunk) {
  CHECK_EQ(plan_for(Collective::all_reduce, "recursive_doubling", 1, 6).chunks, 1);
  CHECK_EQ(plan_for(Collective::broadcast, "binomial", 1, 6).chunks, 1);
  CHECK_EQ(plan_for(Collective::barrier, "dissemination", 1, 6).chunks, 1);
  CHECK_EQ(plan_for(Collective::send, "direct", 1, 6).chunks, 1);
}

TEST(stages_grow_as_each_algorithm_promises) {
  CHECK_EQ(plan_for(Collective::all_reduce, "ring", 3, 8).stages.size(), 14u);             // 2 (N-1)
  CHECK_EQ(plan_for(Collective::all_reduce, "halving_doubling", 3, 8).stages.size(), 6u);  // 2 log2 N
  // One to take the contribution, two for each of log2 N rounds.
  CHECK_EQ(plan_for(Collective::all_reduce, "recursive_doubling", 3, 8).stages.size(), 7u);
  CHECK_EQ(plan_for(Collective::all_reduce, "direct", 3, 8).stages.size(), 3u);
}

TEST(after_the_ring_reduce_scatter_every_rank_owns_its_own_chunk) {
  for (int size = 2; size <= 9; ++size)
    for (int rank = 0; rank < size; ++rank) {
      const Step last = plan_for(Collective::reduce_scatter, "ring", rank, size).stages.back().steps[1];
      CHECK_EQ(to_text(last),
               to_text(as_final(recv_reduce((rank + size - 1) % size, rank, kInput, kOutput))));
    }
}

TEST(direct_begins_with_another_peer_on_every_rank) {
  std::set<int> first_peers;
  for (int rank = 0; rank < 7; ++rank)
    first_peers.insert(plan_for(Collective::all_reduce, "direct", rank, 7).stages[0].steps[0].peers[0]);
  CHECK_EQ(first_peers.size(), 7u);
}

TEST(direct_adds_in_order_of_rank) {
  CHECK_EQ(to_text(plan_for(Collective::reduce_scatter, "direct", 2, 4).stages[1].steps[0]),
           "reduce chunk 2 of scratch[0], scratch[1], input, scratch[2] into output, final");
}

TEST(a_group_of_one_copies_its_data_or_does_nothing) {
  for (const Algorithm* algorithm : all_algorithms()) {
    if (algorithm->supports && !algorithm->supports(1)) continue;
    const Collective collective = collective_of(*algorithm);
    std::string steps;
    for (const Stage& stage : algorithm->plan({collective, 0, 1, 0}).stages)
      for (const Step& step : stage.steps) steps += text(name_of(step.op), step.final ? " final" : "", " ");
    const bool copies = reduces(collective) || collective == Collective::all_gather;
    CHECK_EQ(steps.empty(), !copies, "in ", algorithm->name);
    if (reduces(collective)) CHECK(steps == "copy final " || steps == "reduce final ");
  }
}

TEST(halving_doubling_serves_powers_of_two) {
  const Algorithm& algorithm = algorithm_named(Collective::all_reduce, "halving_doubling");
  for (int size = 1; size <= 64; ++size) CHECK_EQ(algorithm.supports(size), (size & (size - 1)) == 0);
}
