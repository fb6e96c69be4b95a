// Mistakes that only reduce, gather, scatter and all_to_all can have are found and named.
#include "check.h"
#include "plan/text.h"
#include "plan/verify.h"
#include "plans.h"

using namespace pycomm;

namespace {

// The steps that mention `chunk`, of all ranks, to be spoiled.
void for_steps_of_chunk(Plans& plans, int chunk, const std::function<void(Step&)>& spoil) {
  for (Plan& plan : plans)
    for (Stage& stage : plan.stages)
      for (Step& step : stage.steps)
        if (step.op != Op::meet && step.chunk == chunk) spoil(step);
}

}  // namespace

// --- the root ----------------------------------------------------------------
TEST(plans_for_another_root_are_found_in_every_collective_that_has_one) {
  for (const Algorithm* algorithm : Registry<Algorithm>::instance().all()) {
    const Collective collective = collective_of(*algorithm);
    if (!has_root(collective)) continue;
    for (int wrong = 1; wrong < 4; ++wrong) {
      const Plans plans = plans_of(collective, short_name(*algorithm), 4, wrong);
      const VerifyOptions options{.lossy_codecs = algorithm->lossy_codecs};
      CHECK_EQ(verify(collective, wrong, plans, options), "");
      CHECK(!verify(collective, 0, plans, options).empty());
    }
  }
}

TEST(a_reduce_to_another_root_has_no_output_there) {
  CHECK_FLAW(Collective::reduce, plans_of(Collective::reduce, "direct", 3, 1),
             "rank 1, stage 1, 'reduce chunk 0 of scratch[0], input, scratch[1] into output, final': in "
             "reduce rank 1 has no chunk 0 of output",
             {});
}

TEST(a_gather_to_another_root_has_no_output_there) {
  CHECK_FLAW(
      Collective::gather, plans_of(Collective::gather, "direct", 3, 2),
      "rank 2, stage 0, 'copy chunk 2 of input into output': in gather rank 2 has no chunk 2 of output", {});
}

TEST(a_scatter_from_another_root_has_no_input_there) {
  CHECK_FLAW(Collective::scatter, plans_of(Collective::scatter, "direct", 3, 1),
             "rank 1, stage 0, 'send chunk 2 of input to 2': in scatter rank 1 has no chunk 2 of input", {});
}

TEST(one_rank_that_takes_another_for_the_root_is_found) {
  for (Collective collective : {Collective::reduce, Collective::gather}) {
    Plans plans = plans_of(collective, "direct", 3);
    plans[1] = algorithm_named(collective, "direct").plan({collective, 1, 3, 2});
    CHECK_FLAW(collective, plans, "has no send: rank 1 sends 0 messages to rank 0, which receives 1", {});
  }
  Plans plans = plans_of(Collective::scatter, "direct", 3);
  plans[1] = algorithm_named(Collective::scatter, "direct").plan({Collective::scatter, 1, 3, 2});
  CHECK_FLAW(Collective::scatter, plans,
             "rank 0, stage 0, 'send chunk 1 of input to 1' has no receive: rank 1 receives 0 messages from "
             "rank 0, which sends 1",
             {});
}

// --- contributions -----------------------------------------------------------
TEST(a_contribution_that_a_reduce_forgets_is_found) {
  Plans plans = plans_of(Collective::reduce, "direct", 4);
  step_of(plans, 0, 1, 0).sources.pop_back();
  CHECK_FLAW(Collective::reduce, plans, "makes final a sum of ranks {0, 1, 2} only", {});
  plans = plans_of(Collective::reduce, "binomial", 4);
  step_of(plans, 2, 0, 0) = recv(3, 0, scratch(0));
  CHECK_FLAW(
      Collective::reduce, plans,
      "rank 0, stage 0, 'recv_reduce chunk 0 of output and from 2 into output, final' makes final a sum "
      "of ranks {0, 1, 3} only",
      {});
}

TEST(a_contribution_that_a_reduce_adds_twice_is_found) {
  Plans plans = plans_of(Collective::reduce, "direct", 4);
  step_of(plans, 0, 1, 0).sources.push_back(scratch(1));
  CHECK_FLAW(Collective::reduce, plans, "adds the contribution of rank 2 twice", {});
  plans = plans_of(Collective::reduce, "binomial", 4);
  plans[3].stages[1].steps.push_back(send(1, 0, kInput));
  plans[1].stages[0].steps.push_back(recv_reduce(3, 0, kInput, scratch(0)));
  step_of(plans, 1, 1, 0).src = scratch(0);
  CHECK_FLAW(Collective::reduce, plans, "adds the contribution of rank 3 twice", {});
}

TEST(a_final_that_the_root_makes_of_what_is_final_is_found) {
  Plans plans = plans_of(Collective::reduce, "ring", 3);
  for_steps_of_chunk(plans, 2, [](Step& step) {
    if (step.op == Op::recv) step.dst = scratch(0);
  });
  plans[0].stages.push_back({{as_final(copy(2, scratch(0), kOutput))}});
  CHECK_FLAW(Collective::reduce, plans, "makes final what is final already", {});
}

// --- places that a rank has not ------------------------------------------------
TEST(an_input_or_output_that_only_the_root_has_is_not_touched_elsewhere) {
  const auto refused = [](Collective collective, const Step& step, const std::string& why) {
    CHECK_EQ(verify(collective, 0, {{3, {}}, {3, {{{step}}}}, {3, {}}}, {}),
             "rank 1, stage 0, '" + to_text(step) + "': " + why);
  };
  refused(Collective::reduce, copy(1, kInput, kOutput), "in reduce rank 1 has no chunk 1 of output");
  refused(Collective::reduce, recv_reduce(2, 1, kInput, kInput), "the input is not written");
  refused(Collective::reduce, published(send(0, 1, kInput)), "publish would change the input");
  refused(Collective::reduce, store_to({2}, 1, kInput, kOutput), "in reduce rank 2 has no chunk 1 of output");
  refused(Collective::gather, recv(2, 2, kOutput), "in gather rank 1 has no chunk 2 of output");
  refused(Collective::gather, send(0, 2, kInput), "in gather rank 1 has no chunk 2 of input");
  refused(Collective::gather, store_to({2}, 1, kInput, kOutput), "in gather rank 2 has no chunk 1 of output");
  refused(Collective::scatter, send(2, 2, kInput), "in scatter rank 1 has no chunk 2 of input");
  refused(Collective::scatter, recv(0, 2, kOutput), "in scatter rank 1 has no chunk 2 of output");
  for (Collective collective : {Collective::gather, Collective::scatter, Collective::all_to_all})
    CHECK_FLAW(collective, Plans(3), "rank 0 cuts the vector in 1 chunks, expected ", {});
}

TEST(blocks_of_another_pair_are_not_touched) {
  const auto refused = [](const Step& step, const std::string& why) {
    CHECK_EQ(verify(Collective::all_to_all, 0, {{4, {{{step}}}}, {4, {}}}, {}),
             "rank 0, stage 0, '" + to_text(step) + "': " + why);
  };
  refused(send(1, 2, kInput), "in all_to_all rank 0 has no chunk 2 of input");
  refused(recv(1, 1, kOutput), "in all_to_all rank 0 has no chunk 1 of output");
  refused(copy(1, kInput, kOutput), "in all_to_all rank 0 has no chunk 1 of output");
  refused(store_to({1}, 0, kInput, kOutput), "in all_to_all rank 1 has no chunk 0 of output");
}

// --- chunks and blocks ---------------------------------------------------------
TEST(a_chunk_that_goes_to_the_wrong_rank_is_found) {
  Plans plans = plans_of(Collective::scatter, "direct", 3);
  std::swap(step_of(plans, 0, 0, 0).chunk, step_of(plans, 0, 0, 1).chunk);
  CHECK_FLAW(Collective::scatter, plans,
             "rank 1, stage 0, 'recv chunk 1 from 0 into output' is met by another chunk: rank 0, stage 0, "
             "'send chunk 2 of input to 1'",
             {});
  plans = plans_of(Collective::gather, "binomial", 4);
  std::swap(step_of(plans, 2, 1, 0), step_of(plans, 2, 1, 1));
  CHECK_FLAW(Collective::gather, plans,
             "rank 0, stage 0, 'recv chunk 2 from 2 into output' is met by another chunk: rank 2, stage 1, "
             "'send chunk 3 of scratch[0] to 0'",
             {});
}

TEST(a_chunk_that_nobody_brings_is_found) {
  Plans plans = plans_of(Collective::gather, "direct", 3);
  erase_step(plans, 0, 0, 0);
  CHECK_FLAW(Collective::gather, plans, "rank 0 ends with chunk 0 of output unwritten", {});
  plans = plans_of(Collective::scatter, "mapped", 3);
  erase_stage(plans[0], 2);
  CHECK_FLAW(Collective::scatter, plans, "rank 1 ends with chunk 1 of output unwritten", {});
}

TEST(a_swapped_block_of_all_to_all_is_found) {
  Plans plans = plans_of(Collective::all_to_all, "direct", 3);
  std::swap(step_of(plans, 0, 0, 0).chunk, step_of(plans, 0, 0, 2).chunk);
  CHECK_FLAW(Collective::all_to_all, plans,
             "rank 1, stage 0, 'recv chunk 1 from 0 into output' is met by another chunk: rank 0, stage 0, "
             "'send chunk 2 of input to 1'",
             {});
}

TEST(blocks_that_swap_places_on_the_way_are_found) {
  Plans plans = plans_of(Collective::all_to_all, "bruck", 8);
  for_steps_of_chunk(plans, 5, [](Step& step) {
    if (step.op == Op::send && is_scratch(step.src)) step.src = scratch(8 + 3);
  });
  CHECK_FLAW(Collective::all_to_all, plans, "reads scratch[11] of rank 1, which holds chunk", {});
}

TEST(a_block_that_goes_the_first_way_only_is_found) {
  Plans plans = plans_of(Collective::all_to_all, "bruck", 4);
  for (Plan& plan : plans) plan.stages.pop_back();
  CHECK_FLAW(Collective::all_to_all, plans, "rank 0 ends with chunk 4 of output unwritten", {});
}

TEST(one_slot_for_blocks_that_come_and_go_is_found) {
  Plans plans = plans_of(Collective::all_to_all, "bruck", 8);
  for (Plan& plan : plans)
    for (Stage& stage : plan.stages)
      for (Step& step : stage.steps)
        for (Buffer* buffer : {&step.src, &step.dst})
          if (is_scratch(*buffer)) *buffer = scratch((buffer->id - 2) % 8);
  CHECK_FLAW(Collective::all_to_all, plans, "of the same stage", {});
}

// --- addressable memory ----------------------------------------------------------
TEST(a_reduce_that_stores_a_sum_where_others_still_read_is_found_in_place) {
  // Each rank adds its chunk: right. Rank 1 adds chunk 2 too, while rank 2 stores its sum of it.
  Plans plans = plans_of(Collective::reduce, "mapped", 3);
  plans[1].stages.insert(plans[1].stages.begin() + 1, Stage{{reduce_from({0, 1, 2}, 2, kInput, scratch(1))}});
  CHECK_EQ(verify(Collective::reduce, 0, plans, {}), "");
  CHECK_FLAW(Collective::reduce, plans, "race on rank 0: ", {.in_place = true});
}

TEST(ranks_that_store_to_one_chunk_of_the_root_are_found) {
  Plans plans = plans_of(Collective::gather, "mapped", 3);
  plans[1].stages[1].steps = {recv(2, 2, scratch(0)), store_to({0}, 1, kInput, kOutput)};
  plans[1].stages.insert(plans[1].stages.begin() + 2, Stage{{store_to({0}, 2, scratch(0), kOutput)}});
  plans[2].stages[1].steps.push_back(send(1, 2, kInput));
  CHECK_FLAW(Collective::gather, plans, "race on rank 0: ", {});
}

// --- volume ----------------------------------------------------------------------
TEST(more_traffic_than_a_tree_needs_is_found) {
  const Algorithm& direct = algorithm_named(Collective::all_to_all, "direct");
  Algorithm wrong = algorithm_named(Collective::all_to_all, "bruck");
  wrong.volume = direct.volume;
  CHECK_EQ(verify(wrong, 4),
           "all_to_all:bruck of 4 ranks, root 0: the busiest rank moves 0.25 of the vector, expected 0.1875");
}

TEST(all_to_all_is_never_in_place) {
  // Reads what another step of the stage would overwrite, if input and output were the same memory.
  Plans plans = plans_of(Collective::all_to_all, "mapped", 3);
  plans[1].stages[1].steps.push_back(copy(4, kInput, scratch(0)));
  CHECK_EQ(verify(Collective::all_to_all, 0, plans, {.in_place = true}), "");
}
