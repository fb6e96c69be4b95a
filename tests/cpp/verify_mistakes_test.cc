// Every kind of mistake in a plan is found and named.
#include "plan/verify.h"

#include "check.h"
#include "plan/text.h"
#include "plans.h"

using namespace pycomm;

// --- steps -------------------------------------------------------------------
TEST(a_dropped_receive_is_found) {
  Plans plans = plans_of(Collective::all_reduce, "ring", 4);
  erase_step(plans, 2, 5, 1);
  CHECK_FLAW(Collective::all_reduce, plans,
             "rank 1, stage 5, 'send chunk 3 of output to 2' has no receive: rank 2 receives 5 messages from "
             "rank 1, "
             "which sends 6",
             {});
}

TEST(a_dropped_send_is_found) {
  Plans plans = plans_of(Collective::broadcast, "binomial", 4);
  erase_step(plans, 0, 0, 1);
  CHECK_FLAW(
      Collective::broadcast, plans,
      "rank 1, stage 0, 'recv chunk 0 from 0 into output' has no send: rank 0 sends 0 messages to rank 1",
      {});
}

TEST(a_dropped_copy_is_found) {
  Plans plans = plans_of(Collective::all_gather, "ring", 3);
  erase_step(plans, 1, 0, 0);
  CHECK_FLAW(
      Collective::all_gather, plans,
      "rank 1, stage 1, 'send chunk 1 of output to 2, published' reads output of rank 1, which holds nothing",
      {});
}

TEST(a_duplicated_recv_reduce_is_found) {
  Plans plans = plans_of(Collective::all_reduce, "ring", 4);
  auto& steps = plans[3].stages[1].steps;
  steps.push_back(steps[1]);
  CHECK_FLAW(Collective::all_reduce, plans, "rank 3, stage 1, 'recv_reduce chunk 0", {});
  CHECK_FLAW(Collective::all_reduce, plans, "rank 2, stage 2, 'send chunk 3",
             {});  // what meets it is off by one
}

TEST(a_contribution_that_comes_twice_is_found) {
  Plans plans = plans_of(Collective::reduce_scatter, "direct", 3);
  plans[0].stages[0].steps.push_back(send(1, 1, kInput));
  plans[1].stages[0].steps.push_back(recv(0, 1, scratch(7)));
  step_of(plans, 1, 1, 0).sources.push_back(scratch(7));
  CHECK_FLAW(
      Collective::reduce_scatter, plans,
      "rank 1, stage 1, 'reduce chunk 1 of scratch[0], input, scratch[1], scratch[7] into output, final' "
      "adds the contribution of rank 0 twice",
      {});
}

TEST(swapped_sends_of_a_channel_are_found) {
  Plans plans = plans_of(Collective::all_reduce, "halving_doubling", 4);
  std::swap(step_of(plans, 0, 0, 1), step_of(plans, 0, 0, 3));
  CHECK_EQ(step_of(plans, 0, 0, 1).chunk, 3);
  CHECK_FLAW(
      Collective::all_reduce, plans,
      "rank 1, stage 0, 'recv_reduce chunk 1 of input and from 0 into output' is met by another chunk: "
      "rank 0, stage 0, 'send chunk 3 of input to 1'",
      {});
}

TEST(a_wrong_peer_is_found) {
  Plans plans = plans_of(Collective::all_reduce, "ring", 4);
  step_of(plans, 3, 2, 0).peers = {1};
  CHECK_FLAW(Collective::all_reduce, plans,
             "rank 0, stage 2, 'recv_reduce chunk 0 of input and from 3 into output, final' is met by "
             "another chunk: "
             "rank 3, stage 3, 'send chunk 3 of output to 0, published'",
             {});
  plans = plans_of(Collective::broadcast, "binomial", 4);
  step_of(plans, 0, 0, 0).peers = {3};
  CHECK_FLAW(Collective::broadcast, plans, "has no send: rank 0 sends 0 messages to rank 2, which receives 1",
             {});
}

TEST(a_wrong_chunk_is_found) {
  Plans plans = plans_of(Collective::all_gather, "ring", 4);
  step_of(plans, 2, 2, 1).chunk = 3;
  CHECK_FLAW(Collective::all_gather, plans, "is met by another chunk", {});
}

TEST(a_result_that_never_comes_is_found) {
  const Plans nothing(2, Plan{.chunks = 2});
  CHECK_FLAW(Collective::all_gather, nothing, "rank 0 ends with chunk 0 of output unwritten", {});
  CHECK_FLAW(Collective::all_reduce, nothing, "rank 0 ends with chunk 0 of output unwritten", {});
  CHECK_FLAW(Collective::all_reduce, Plans(1), "rank 0 ends with chunk 0 of output made final by no step",
             {.in_place = true});
}

TEST(a_result_that_is_not_complete_is_found) {
  const Plan own_only{1, {{{copy(0, kInput, kOutput)}}}};
  CHECK_FLAW(Collective::all_reduce, Plans(2, own_only),
             "rank 0 ends with chunk 0 of output holding data of ranks {0}, expected all", {});
}

TEST(a_broadcast_from_another_root_is_found) {
  CHECK_FLAW(
      Collective::broadcast, plans_of(Collective::broadcast, "direct", 2, 1),
      "rank 1, stage 0, 'send chunk 0 of output to 0, published' reads output of rank 1, which holds nothing",
      {});
}

TEST(steps_that_cannot_be_are_found) {
  const auto flaw_of = [](Collective collective, const Step& step) {
    return verify(collective, 0, {{3, {{{step}}}}, {3, {}}, {3, {}}}, {});
  };
  const auto refused = [&](Collective collective, const Step& step, const std::string& why) {
    CHECK_EQ(flaw_of(collective, step), "rank 0, stage 0, '" + to_text(step) + "': " + why);
  };
  const Collective reducing = Collective::all_reduce, gathering = Collective::all_gather;
  refused(reducing, send(3, 0, kInput), "peer 3 of 3 ranks");
  refused(reducing, send(-1, 0, kInput), "peer -1 of 3 ranks");
  refused(reducing, send(0, 0, kInput), "a rank is no peer of its own");
  refused(reducing, send(1, 3, kInput), "there are 3 chunks");
  refused(reducing, copy(-1, kInput, kOutput), "there are 3 chunks");
  refused(reducing, Step{.op = Op::recv, .peers = {1, 2}}, "a message has one peer");
  refused(reducing, Step{.op = Op::copy, .peers = {1}}, "a local step has no peers");
  refused(reducing, store_to({1, 1}, 0, kOutput, kOutput), "peer 1 is listed twice");
  refused(reducing, reduce_from({1, 2}, 0, kInput, kOutput), "reduce_from includes the own rank");
  refused(reducing, reduce_from({0, 2, 1}, 0, kInput, kOutput), "reduce_from reduces in order of rank");
  refused(reducing, recv(1, 0, kInput), "the input is not written");
  refused(reducing, store_to({1}, 0, kOutput, kInput), "the input is not written");
  refused(reducing, store_to({1}, 0, kOutput, scratch(0)), "peers know only where input and output are");
  refused(reducing, reduce(0, kOutput, {}), "there is nothing to reduce");
  refused(reducing, send(1, 0, Buffer{-1}), "in all_reduce rank 0 has no chunk 0 of scratch[-3]");
  refused(gathering, send(1, 1, kInput), "in all_gather rank 0 has no chunk 1 of input");
  refused(Collective::reduce_scatter, recv(1, 2, kOutput),
          "in reduce_scatter rank 0 has no chunk 2 of output");
  refused(Collective::broadcast, send(1, 0, kInput), "in broadcast rank 0 has no chunk 0 of input");
  refused(Collective::barrier, send(1, 0, kOutput), "in barrier rank 0 has no chunk 0 of output");
  refused(gathering, recv_reduce(1, 0, kOutput, kOutput), "all_gather reduces nothing");
  refused(gathering, as_final(copy(0, kInput, kOutput)), "final in all_gather");
  refused(reducing, as_final(recv(1, 0, kOutput)), "final belongs to a step that reduces or copies");
  refused(reducing, published(copy(0, kInput, kOutput)), "publish belongs to a send");
  refused(reducing, published(send(1, 0, kInput)), "publish would change the input");
}

TEST(ranks_that_cut_the_vector_differently_are_found) {
  Plans plans = plans_of(Collective::all_reduce, "ring", 3);
  plans[2].chunks = 4;
  CHECK_FLAW(Collective::all_reduce, plans, "rank 2 cuts the vector in 4 chunks, expected 3", {});
  CHECK_FLAW(Collective::all_gather, Plans(2), "rank 0 cuts the vector in 1 chunks, expected 2", {});
}

// --- marks -------------------------------------------------------------------
TEST(a_missing_final_is_found) {
  Plans plans = plans_of(Collective::all_reduce, "ring", 4);
  step_of(plans, 2, 2, 1).final = false;
  CHECK_FLAW(Collective::all_reduce, plans, "rank 0 ends with chunk 2 of output made final by no step", {});
}

TEST(a_final_that_comes_too_early_is_found) {
  Plans plans = plans_of(Collective::all_reduce, "ring", 4);
  step_of(plans, 2, 1, 1).final = true;
  CHECK_FLAW(
      Collective::all_reduce, plans,
      "rank 2, stage 1, 'recv_reduce chunk 3 of input and from 1 into output, final' makes final a sum of "
      "ranks {0, 1, 2} only",
      {});
}

TEST(a_second_final_is_found) {
  const Plan twice{1,
                   {{{as_final(copy(0, kInput, scratch(0)))}}, {{as_final(copy(0, scratch(0), kOutput))}}}};
  CHECK_FLAW(Collective::all_reduce, Plans{twice}, "makes final what is final already", {});
}

TEST(adding_to_a_final_result_is_found) {
  const auto stages = [](int rank) {
    const int peer = 1 - rank;
    return std::vector<Stage>{{{send(peer, 0, kInput), recv(peer, 0, scratch(0))}},
                              {{as_final(reduce(0, kOutput, {kInput, scratch(0)}))}},
                              {{reduce(0, scratch(1), {kOutput, scratch(0)})}}};
  };
  CHECK_FLAW(Collective::all_reduce, plans_from(2, 1, stages), "adds to a result that is final", {});
}

TEST(a_missing_publish_is_found) {
  for (std::string name : {"ring", "direct", "halving_doubling", "recursive_doubling"}) {
    Plans plans = plans_of(Collective::all_reduce, name, 2);
    for (Plan& plan : plans)
      for (Stage& stage : plan.stages)
        for (Step& step : stage.steps) step.publish = false;
    CHECK_FLAW(Collective::all_reduce, plans,
               " under a lossy codec: a send whose value is kept is not published", {.lossy_codecs = true});
    if (name != "recursive_doubling")
      CHECK_EQ(verify(Collective::all_reduce, 0, plans, {.lossy_codecs = false}), "");
  }
}

TEST(publishing_what_was_received_is_found) {
  Plans plans = plans_of(Collective::all_gather, "ring", 3);
  step_of(plans, 0, 2, 0).publish = true;
  CHECK_FLAW(Collective::all_gather, plans,
             "rank 0, stage 2, 'send chunk 2 of output to 1, published' publishes what it received", {});
}

TEST(a_result_that_one_rank_alone_sends_to_its_extra_is_found) {
  // The textbook way for sizes that are not powers of two: rank 0 sends the finished sum to rank 2. Under a
  // lossy codec rank 1 then keeps bits that 0 and 2 do not have.
  const auto swap = [](int peer) {
    return std::vector<Stage>{{{published(send(peer, 0, kOutput)), recv(peer, 0, scratch(0))}}};
  };
  Plans plans(3);
  plans[0].stages = {{{recv_reduce(2, 0, kInput, kOutput)}},
                     swap(1)[0],
                     {{as_final(reduce(0, kOutput, {kOutput, scratch(0)}))}},
                     {{published(send(2, 0, kOutput))}}};
  plans[1].stages = {
      {{copy(0, kInput, kOutput)}}, swap(0)[0], {{as_final(reduce(0, kOutput, {scratch(0), kOutput}))}}};
  plans[2].stages = {{{send(0, 0, kInput)}}, {{recv(0, 0, kOutput)}}};
  CHECK_EQ(verify(Collective::all_reduce, 0, plans, {.lossy_codecs = false}), "");
  CHECK_FLAW(Collective::all_reduce, plans, "rank 1 ends with chunk 0 of output with other bits than rank 0",
             {});
}

TEST(another_order_of_addition_is_found) {
  Plans plans = plans_of(Collective::all_reduce, "recursive_doubling", 4);
  std::swap(step_of(plans, 3, 4, 0).sources[0], step_of(plans, 3, 4, 0).sources[1]);
  CHECK_FLAW(Collective::all_reduce, plans,
             "rank 3 ends with chunk 0 of output added in another order than on rank 0",
             {.lossy_codecs = false});
}

// --- order -------------------------------------------------------------------
TEST(two_writes_of_one_stage_into_one_place_are_found) {
  Plans plans = plans_of(Collective::reduce_scatter, "direct", 3);
  for (Step& step : plans[1].stages[0].steps)
    if (step.op == Op::recv) step.dst = scratch(0);
  CHECK_FLAW(
      Collective::reduce_scatter, plans,
      "rank 1, stage 0, 'recv chunk 1 from 2 into scratch[0]' conflicts with 'recv chunk 1 from 0 into "
      "scratch[0]' of the same stage",
      {});
}

TEST(a_read_and_a_write_of_one_stage_are_found) {
  Plans plans = plans_of(Collective::reduce_scatter, "ring", 4);
  for (Plan& plan : plans)
    for (Stage& stage : plan.stages)
      for (Step& step : stage.steps)
        for (Buffer* buffer : {&step.src, &step.dst})
          if (is_scratch(*buffer)) *buffer = scratch(0);
  CHECK_FLAW(Collective::reduce_scatter, plans,
             "rank 0, stage 1, 'recv_reduce chunk 1 of input and from 3 into "
             "scratch[0]' conflicts with 'send chunk 2 of scratch[0] to 1' of the same stage",
             {});
}

TEST(a_publish_and_a_plain_send_of_one_stage_are_found) {
  Plans plans = plans_of(Collective::all_gather, "direct", 3);
  step_of(plans, 0, 1, 0).publish = false;
  CHECK_FLAW(Collective::all_gather, plans, "conflicts with 'send chunk 0 of output to 1' of the same stage",
             {});
}

TEST(a_scratch_slot_reused_too_early_is_found) {
  const auto stages = [](int rank) {
    const int next = (rank + 1) % 3, last = (rank + 2) % 3;
    return std::vector<Stage>{{{send(next, next, kInput), recv(last, rank, scratch(0))}},
                              {{send(last, last, kInput), recv(next, rank, scratch(0))}},
                              {{as_final(reduce(rank, kOutput, {scratch(0), kInput}))}}};
  };
  CHECK_FLAW(Collective::reduce_scatter, plans_from(3, 3, stages), "makes final a sum of ranks {1, 2} only",
             {});
}

TEST(a_scratch_slot_that_holds_another_chunk_is_found) {
  const Plan plan{2, {{{copy(1, kInput, scratch(0))}}, {{as_final(copy(0, scratch(0), kOutput))}}}};
  CHECK_FLAW(Collective::all_reduce, Plans{plan}, "reads scratch[0] of rank 0, which holds chunk 1", {});
}

TEST(an_unwritten_scratch_slot_is_found) {
  Plans plans = plans_of(Collective::all_reduce, "recursive_doubling", 2);
  step_of(plans, 0, 1, 1).dst = scratch(1);
  CHECK_FLAW(Collective::all_reduce, plans, "reads scratch[0] of rank 0, which holds nothing there yet", {});
}

TEST(ranks_that_both_receive_before_they_send_are_found) {
  const auto stages = [](int rank) {
    return std::vector<Stage>{{{recv(1 - rank, 0, scratch(0))}}, {{send(1 - rank, 0, scratch(0))}}};
  };
  CHECK_FLAW(
      Collective::barrier, plans_from(2, 1, stages),
      "deadlock: rank 0, stage 1, 'send chunk 0 of scratch[0] to 1' waits for rank 0, stage 0, 'recv chunk 0 "
      "from 1 into scratch[0]'; rank 1, stage 1, ",
      {});
}

TEST(a_circle_of_synchronous_sends_is_found) {
  const auto stages = [](int rank) {
    return std::vector<Stage>{{{send((rank + 1) % 5, 0, scratch(0))}},
                              {{recv((rank + 4) % 5, 0, scratch(0))}}};
  };
  CHECK_FLAW(Collective::barrier, plans_from(5, 1, stages), "deadlock: ", {});
}

TEST(messages_that_wait_for_each_other_in_two_channels_are_found) {
  // Rank 1 receives chunk 0 only when rank 0 has taken its message, and rank 0 takes it only when chunk 1 is
  // gone.
  Plans plans(2, Plan{.chunks = 2});
  plans[0].stages = {{{send(1, 0, scratch(0)), send(1, 1, scratch(1))}}, {{recv(1, 0, scratch(1))}}};
  plans[1].stages = {{{send(0, 0, scratch(0))}}, {{recv(0, 0, scratch(0)), recv(0, 1, scratch(1))}}};
  CHECK_FLAW(Collective::barrier, plans, "deadlock: ", {});
  std::swap(step_of(plans, 0, 0, 0), step_of(plans, 0, 0, 1));
  std::swap(step_of(plans, 1, 1, 0), step_of(plans, 1, 1, 1));
  CHECK_EQ(verify(Collective::barrier, 0, plans, {}), "");
}

TEST(input_that_is_read_after_the_output_took_its_place_is_found_in_place) {
  Plans plans = plans_of(Collective::all_reduce, "recursive_doubling", 2);
  for (Plan& plan : plans) plan.stages[1].steps[0] = send(plan.stages[1].steps[0].peers[0], 0, kInput);
  CHECK_EQ(verify(Collective::all_reduce, 0, plans, {.lossy_codecs = false}), "");
  CHECK_FLAW(Collective::all_reduce, plans,
             "rank 0, stage 1, 'send chunk 0 of input to 1' reads input of rank 0, which was overwritten, in "
             "place, by "
             "the output",
             {.in_place = true});
}

TEST(output_that_is_read_before_it_is_written_is_found_in_place) {
  Plans plans = plans_of(Collective::all_reduce, "ring", 2);
  step_of(plans, 1, 0, 0).src = kOutput;
  CHECK_FLAW(Collective::all_reduce, plans, "reads output of rank 1, which in place still holds the input",
             {.in_place = true});
  CHECK_FLAW(Collective::all_reduce, plans, "reads output of rank 1, which holds nothing there yet", {});
}

TEST(a_barrier_that_forgets_what_it_heard_is_found) {
  Plans plans = plans_of(Collective::barrier, "dissemination", 4);
  for (Plan& plan : plans) erase_stage(plan, 1);
  CHECK_FLAW(Collective::barrier, plans, "rank 0 leaves the barrier without knowing that rank 1 has come",
             {});
}

TEST(a_barrier_that_stops_early_is_found) {
  Plans plans = plans_of(Collective::barrier, "dissemination", 5);
  for (Plan& plan : plans) plan.stages.pop_back();
  CHECK_FLAW(Collective::barrier, plans, "leaves the barrier without knowing that rank", {});
}

// --- addressable memory ------------------------------------------------------
TEST(a_missing_meet_is_found) {
  const Plans right = plans_of(Collective::all_reduce, "mapped", 3);
  Plans one = right, first = right, last = right;
  erase_stage(one[1], 3);
  for (Plan& plan : first) erase_stage(plan, 0);
  for (Plan& plan : last) erase_stage(plan, 3);
  CHECK_FLAW(Collective::all_reduce, one, "rank 0 meets 2 times, rank 1 1 times", {});
  CHECK_FLAW(Collective::all_reduce, first, "reaches peers before the first meet", {});
  CHECK_FLAW(Collective::all_reduce, last, "reaches peers after the last meet", {});
}

TEST(a_meet_that_not_all_expect_is_found) {
  Plans plans = plans_of(Collective::all_reduce, "mapped", 3);
  for (int stage : {0, 3}) step_of(plans, 2, stage, 0).peers = {1};
  CHECK_FLAW(Collective::all_reduce, plans, "meets ranks other than those of 'meet 1' on rank 2", {});
  step_of(plans, 2, 0, 0).peers = {0, 1};
  CHECK_FLAW(Collective::all_reduce, plans, "is with others than the first meet", {});
}

TEST(a_meet_beside_other_steps_is_found) {
  Plans plans = plans_of(Collective::all_gather, "mapped", 2);
  plans[0].stages[0].steps.push_back(plans[0].stages[1].steps[0]);
  erase_stage(plans[0], 1);
  CHECK_FLAW(Collective::all_gather, plans, "'meet 1' shares its stage with other steps", {});
}

TEST(two_ranks_that_store_to_one_place_are_found) {
  Plans plans = plans_of(Collective::all_reduce, "mapped", 3);
  step_of(plans, 0, 1, 0).chunk = step_of(plans, 0, 2, 0).chunk = 1;
  CHECK_FLAW(Collective::all_reduce, plans, "touch the same memory between the same meets", {});
}

TEST(memory_that_its_owner_overwrites_while_peers_read_is_found_in_place) {
  // Everybody adds up everything for itself: right out of place, a race in place.
  const auto stages = [](int rank) {
    return std::vector<Stage>{
        {{meet({1 - rank})}}, {{as_final(reduce_from({0, 1}, 0, kInput, kOutput))}}, {{meet({1 - rank})}}};
  };
  const Plans plans = plans_from(2, 1, stages);
  CHECK_EQ(verify(Collective::all_reduce, 0, plans, {}), "");
  CHECK_FLAW(Collective::all_reduce, plans, "race on rank 0: rank 0, stage 1, 'reduce_from",
             {.in_place = true});
}

TEST(far_steps_of_one_rank_that_nothing_orders_are_found) {
  // Rank 0 stores what it made of its own memory into the place that its other step reads.
  Plans plans(2);
  plans[0].stages = {
      {{meet({1})}},
      {{copy(0, kInput, scratch(1))}},
      {{as_final(reduce_from({0, 1}, 0, kInput, kOutput)), store_to({1}, 0, scratch(1), kOutput)}},
      {{meet({1})}}};
  plans[1].stages = {{{meet({0})}}, {{meet({0})}}};
  CHECK_FLAW(Collective::all_reduce, plans, "race on rank 1", {.in_place = true});
}

// --- volume, pairs -----------------------------------------------------------
TEST(more_traffic_than_the_theory_is_found) {
  Plans plans = plans_of(Collective::all_gather, "ring", 4);
  plans[0].stages.back().steps.push_back(send(1, 0, kOutput));
  plans[1].stages.back().steps.push_back(recv(0, 0, scratch(0)));
  CHECK_EQ(verify(Collective::all_gather, 0, plans, {}), "");
  CHECK_FLAW(Collective::all_gather, plans, "the busiest rank moves 1 of the vector, expected 0.75",
             {.volume = 0.75});
}

TEST(a_send_is_verified_with_its_receive) {
  Plans plans(3);
  plans[2].stages = {{{send(0, 0, kInput)}}};
  CHECK_FLAW(Collective::send, plans, "rank 2, stage 0, 'send chunk 0 of input to 0' has no receive", {});
  plans[0].stages = {{{recv(2, 0, kOutput)}}};
  CHECK_EQ(verify(Collective::send, 0, plans, {.volume = 1.0}), "");
  CHECK_EQ(verify(Collective::recv, 2, plans, {.volume = 1.0}), "");
  CHECK_FLAW(Collective::recv, plans, "reads input of rank 2, which holds nothing there yet", {});
  step_of(plans, 0, 0, 0).dst = scratch(0);
  CHECK_FLAW(Collective::send, plans, "rank 0 ends with chunk 0 of output unwritten", {});
  CHECK_FLAW(Collective::send, Plans(3), "no rank has steps with rank 0", {});
  plans[1].stages = {{}};
  CHECK_FLAW(Collective::send, plans, "ranks 1 and 2 both have steps with rank 0", {});
}
