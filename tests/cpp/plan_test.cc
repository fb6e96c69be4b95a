#include "plan/plan.h"

#include <set>

#include "check.h"
#include "plan/text.h"

using namespace pycomm;

namespace {

std::vector<const Algorithm*> all_algorithms() {
  return Registry<Algorithm>::instance().all();
}

void check_linked(Collective collective, std::initializer_list<const char*> names) {
  for (const char* name : names) CHECK_EQ(short_name(algorithm_named(collective, name)), name);
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
  check_linked(Collective::all_reduce, {"direct", "halving_doubling", "hierarchical", "hierarchical_direct",
                                        "mapped", "recursive_doubling", "ring"});
  check_linked(Collective::reduce_scatter,
               {"direct", "hierarchical", "hierarchical_direct", "mapped", "ring"});
  check_linked(Collective::all_gather,
               {"bruck", "direct", "hierarchical", "hierarchical_direct", "mapped", "ring"});
  check_linked(Collective::broadcast, {"binomial", "direct", "hierarchical", "mapped"});
  check_linked(Collective::reduce,
               {"binomial", "direct", "hierarchical", "mapped", "ring", "scatter_gather"});
  check_linked(Collective::gather, {"binomial", "direct", "mapped"});
  check_linked(Collective::scatter, {"binomial", "direct", "mapped"});
  check_linked(Collective::all_to_all, {"bruck", "direct", "mapped"});
  check_linked(Collective::barrier, {"dissemination"});
  check_linked(Collective::send, {"direct"});
  check_linked(Collective::recv, {"direct"});
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
               "no algorithm 'halving_doubling' for all_gather; there are: bruck, direct, hierarchical, "
               "hierarchical_direct, mapped, ring");
  CHECK_THROWS(algorithm_named(Collective::barrier, ""), InvalidArgument, "there are: dissemination");
}

TEST(a_name_without_its_collective_is_an_internal_error) {
  CHECK_THROWS(collective_of(Algorithm{.name = "ring", .summary = ""}), Error,
               "is not named 'collective:name'");
}

TEST(vectors_with_parts_have_them_for_chunks) {
  for (const Algorithm* algorithm : all_algorithms())
    for (int size = 1; size <= 9; ++size) {
      const Collective collective = collective_of(*algorithm);
      if (!has_parts(collective)) continue;
      const int parts = collective == Collective::all_to_all ? size * size : size;
      CHECK_EQ(algorithm->plan({collective, size / 2, size, size - 1}).chunks, parts, "in ", algorithm->name);
    }
}

TEST(every_collective_with_parts_has_an_algorithm_for_chosen_sizes_that_needs_no_mapped_peers) {
  for (int i = 0; i < kCollectiveCount; ++i) {
    const auto collective = static_cast<Collective>(i);
    if (!has_parts(collective)) continue;
    int able = 0;
    for (const Algorithm* algorithm : algorithms_for(collective))
      able += algorithm->uneven && !algorithm->mapped;
    CHECK(able > 0);
  }
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
  // One to copy the own part, ceil(log2 N) rounds.
  CHECK_EQ(plan_for(Collective::all_gather, "bruck", 3, 9).stages.size(), 5u);
  CHECK_EQ(plan_for(Collective::all_to_all, "bruck", 3, 8).stages.size(), 4u);
  CHECK_EQ(plan_for(Collective::all_to_all, "direct", 3, 8).stages.size(), 1u);
  CHECK_EQ(plan_for(Collective::reduce, "ring", 3, 8).stages.size(), 8u);  // N-1, and the way to the root
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
    const bool copies = reduces(collective) || has_parts(collective);
    CHECK_EQ(steps.empty(), !copies, "in ", algorithm->name);
    if (reduces(collective)) CHECK(steps == "copy final " || steps == "reduce final ");
  }
}

TEST(halving_doubling_gives_ranks_left_over_two_stages) {
  const auto stages = [](int rank, int size) {
    return plan_for(Collective::all_reduce, "halving_doubling", rank, size).stages.size();
  };
  CHECK_EQ(stages(1, 5), 2u);  // 0 takes part for 1, in 2 log2 4 rounds and two more
  CHECK_EQ(stages(0, 5), 6u);
  CHECK_EQ(stages(4, 5), 4u);
}

TEST(a_binomial_reduce_adds_neighbours_first_and_passes_the_sum_on) {
  CHECK_EQ(to_text(plan_for(Collective::reduce, "binomial", 3, 6, 1)),  // 2 from the root
           "chunks 1\n"
           "stage 0\n"
           "  recv_reduce chunk 0 of input and from 4 into scratch[0]\n"
           "stage 1\n"
           "  send chunk 0 of scratch[0] to 1\n");
  CHECK_EQ(to_text(plan_for(Collective::reduce, "binomial", 1, 6, 1)),
           "chunks 1\n"
           "stage 0\n"
           "  recv_reduce chunk 0 of input and from 2 into output\n"
           "  recv_reduce chunk 0 of output and from 3 into output\n"
           "  recv_reduce chunk 0 of output and from 5 into output, final\n");
}

TEST(bruck_moves_a_block_by_the_binary_digits_of_its_way) {
  CHECK_EQ(to_text(plan_for(Collective::all_to_all, "bruck", 0, 4)),
           "chunks 16\n"
           "stage 0\n"
           "  copy chunk 0 of input into output\n"
           "stage 1\n"
           "  send chunk 1 of input to 1\n"
           "  recv chunk 12 from 3 into output\n"
           "  send chunk 3 of input to 1\n"
           "  recv chunk 14 from 3 into scratch[7]\n"
           "stage 2\n"
           "  send chunk 2 of input to 2\n"
           "  recv chunk 8 from 2 into output\n"
           "  send chunk 14 of scratch[7] to 2\n"
           "  recv chunk 4 from 2 into output\n");
}

TEST(every_place_of_the_table_is_where_it_says) {
  const auto places = [](Collective collective, Buffer buffer, int rank) {
    std::string chunks;
    for (int chunk = 0; chunk < chunks_of_parts(collective, 3); ++chunk)
      if (has_chunk({collective, rank, 3, 1}, buffer, chunk)) chunks += text(chunk, " ");
    return chunks;
  };
  const auto expect = [&](Collective collective, int rank, const std::string& in, const std::string& out) {
    CHECK_EQ(places(collective, kInput, rank), in, name_of(collective), " rank ", rank);
    CHECK_EQ(places(collective, kOutput, rank), out, name_of(collective), " rank ", rank);
  };
  expect(Collective::all_reduce, 2, "0 1 2 ", "0 1 2 ");
  expect(Collective::reduce_scatter, 2, "0 1 2 ", "2 ");
  expect(Collective::all_gather, 2, "2 ", "0 1 2 ");
  expect(Collective::broadcast, 2, "", "0 1 2 ");
  expect(Collective::reduce, 1, "0 1 2 ", "0 1 2 ");
  expect(Collective::reduce, 2, "0 1 2 ", "");
  expect(Collective::gather, 1, "1 ", "0 1 2 ");
  expect(Collective::gather, 2, "2 ", "");
  expect(Collective::scatter, 1, "0 1 2 ", "1 ");
  expect(Collective::scatter, 2, "", "2 ");
  expect(Collective::all_to_all, 2, "6 7 8 ", "2 5 8 ");
  expect(Collective::barrier, 2, "", "");
  CHECK(has_chunk({Collective::barrier, 2, 3, 1}, scratch(5), 0));
}
