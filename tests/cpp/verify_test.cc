// Every registered plan is right, and so are others that no algorithm here makes.
#include "plan/verify.h"

#include "check.h"
#include "plans.h"

using namespace pycomm;

namespace {

std::vector<const Algorithm*> all_algorithms() {
  return Registry<Algorithm>::instance().all();
}

bool supports(const Algorithm& algorithm, int size) {
  return !algorithm.supports || algorithm.supports(size);
}

// In place and not, and of up to 8 roots.
void check_every_plan(int size) {
  for (const Algorithm* algorithm : all_algorithms())
    if (supports(*algorithm, size)) CHECK_EQ(verify(*algorithm, size), "");
}

}  // namespace

// --- the plans that we ship --------------------------------------------------
TEST(every_plan_is_right_for_1_to_33_ranks) {
  for (int size = 1; size <= 33; ++size) check_every_plan(size);
}

TEST(every_plan_is_right_for_64_ranks) {
  check_every_plan(64);
}

TEST(every_plan_is_right_for_100_ranks) {
  check_every_plan(100);
}

TEST(every_plan_is_right_for_128_ranks) {
  check_every_plan(128);
}

// Those whose ranks have O(N log N) steps altogether.
TEST(plans_of_few_steps_are_right_for_1024_ranks) {
  for (std::string_view name : {"all_reduce:recursive_doubling", "broadcast:binomial", "broadcast:direct",
                                "reduce:binomial", "reduce:direct", "gather:binomial", "gather:direct",
                                "scatter:binomial", "scatter:direct", "barrier:dissemination"})
    CHECK_EQ(verify(Registry<Algorithm>::instance().get(name, "algorithm"), 1024), "");
}

TEST(no_algorithm_escapes_the_sizes_that_are_verified) {
  for (const Algorithm* algorithm : all_algorithms()) {
    int cases = 0;
    for (int size = 2; size <= 33; ++size) cases += supports(*algorithm, size);
    CHECK(cases >= 5);
    CHECK(algorithm->plan != nullptr);
    CHECK(algorithm->volume != nullptr);
  }
}

TEST(a_size_that_is_not_supported_is_refused) {
  Algorithm even_only = algorithm_named(Collective::all_reduce, "ring");
  even_only.supports = [](int size) { return size % 2 == 0; };
  CHECK_EQ(verify(even_only, 6), "");
  CHECK_THROWS(verify(even_only, 5), InvalidArgument, "all_reduce:ring does not support 5 ranks");
  CHECK_THROWS(verify(algorithm_named(Collective::send, "direct"), 1), InvalidArgument,
               "does not support 1 ranks");
}

TEST(a_registered_algorithm_that_is_wrong_is_named_with_its_case) {
  Algorithm wrong = algorithm_named(Collective::all_reduce, "ring");
  wrong.volume = [](int) { return 1.0; };
  CHECK_EQ(verify(wrong, 4),
           "all_reduce:ring of 4 ranks, root 0: the busiest rank moves 1.5 of the vector, expected 1");
}

TEST(a_root_without_a_plan_is_refused) {
  CHECK_THROWS(verify(Collective::broadcast, 2, Plans(2), {}), InvalidArgument, "root 2 of 2 plans");
}

// --- plans of other shapes that are right too --------------------------------
TEST(recv_reduces_of_one_stage_into_one_place_apply_in_the_listed_order) {
  const auto stages = [](int rank) {
    const int next = (rank + 1) % 3, last = (rank + 2) % 3;
    return std::vector<Stage>{
        {{send(next, next, kInput), send(last, last, kInput), recv_reduce(next, rank, kInput, kOutput),
          as_final(recv_reduce(last, rank, kOutput, kOutput))}}};
  };
  Plans plans = plans_from(3, 3, stages);
  CHECK_EQ(verify(Collective::reduce_scatter, 0, plans, {}), "");
  CHECK_EQ(verify(Collective::reduce_scatter, 0, plans, {.in_place = true}), "");
  std::swap(step_of(plans, 1, 0, 2), step_of(plans, 1, 0, 3));
  CHECK_FLAW(Collective::reduce_scatter, plans, "which holds nothing there yet", {});
}

TEST(groups_may_meet_while_messages_join_them) {
  const auto stages = [](int rank) {
    const int near = rank ^ 1, far = rank ^ 2;
    return std::vector<Stage>{{{meet({near})}},
                              {{copy(rank, kInput, kOutput)}},
                              {{store_to({near}, rank, kOutput, kOutput)}},
                              {{meet({near})}},
                              {{published(send(far, rank, kOutput)), published(send(far, near, kOutput)),
                                recv(far, far, kOutput), recv(far, far ^ 1, kOutput)}}};
  };
  Plans plans = plans_from(4, 4, stages);
  for (bool in_place : {false, true})
    CHECK_EQ(verify(Collective::all_gather, 0, plans, {.in_place = in_place, .lossy_codecs = false}), "");
  step_of(plans, 0, 2, 0).peers = {1, 2};
  CHECK_FLAW(Collective::all_gather, plans, "reaches rank 2, which it does not meet", {});
}

TEST(one_meeting_of_all_is_a_barrier) {
  CHECK_EQ(verify(Collective::barrier, 0,
                  {{1, {{{meet({1, 2})}}}}, {1, {{{meet({0, 2})}}}}, {1, {{{meet({0, 1})}}}}}, {}),
           "");
}

TEST(a_barrier_may_mix_meetings_and_messages) {
  const auto stages = [](int rank) {
    return std::vector<Stage>{{{meet({rank ^ 1})}},
                              {{send(rank ^ 2, 0, scratch(0)), recv(rank ^ 2, 0, scratch(1))}}};
  };
  Plans plans = plans_from(4, 1, stages);
  CHECK_EQ(verify(Collective::barrier, 0, plans, {}), "");
  for (Plan& plan : plans) std::swap(plan.stages[0], plan.stages[1]);
  CHECK_EQ(verify(Collective::barrier, 0, plans, {}), "");
}
