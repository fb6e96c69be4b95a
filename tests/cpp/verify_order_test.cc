// The order in which a plan adds is proven, and a plan that claims another one is found out.
#include "check.h"
#include "plans.h"

using namespace pycomm;

namespace {

Algorithm claiming(std::string_view name, Order order, bool rounds_once = false) {
  Algorithm algorithm = algorithm_named(Collective::all_reduce, name);
  algorithm.orders = {order};
  algorithm.rounds_once = rounds_once;
  return algorithm;
}

constexpr std::string_view kAnother = " makes final a sum in another order than '";

void found_out(const Algorithm& algorithm, int size, std::string_view part) {
  const std::string flaw = verify(algorithm, size);
  if (flaw.find(part) == std::string::npos)
    check::fail(__FILE__, __LINE__, algorithm.name, " of ", size, ": '", flaw, "' does not say '", part, "'");
  ++check::checks();
}

}  // namespace

TEST(every_collective_that_reduces_has_both_orders_on_any_transport_and_where_memory_is_mapped) {
  for (const Collective collective : {Collective::all_reduce, Collective::reduce_scatter, Collective::reduce})
    for (const Order order : {Order::rank, Order::tree})
      for (const bool mapped : {false, true}) {
        int count = 0;
        for (const Algorithm* algorithm : algorithms_for(collective))
          count += algorithm->mapped == mapped && keeps(*algorithm, order, true);
        CHECK(count > 0);
      }
}

TEST(an_order_that_is_not_kept_is_found_with_the_algorithm_and_the_step) {
  CHECK_EQ(
      verify(claiming("ring", Order::rank), 3),
      "all_reduce:ring of 3 ranks, root 0, order rank: rank 0, stage 1, 'recv_reduce chunk 0 of input and "
      "from 2 into output, final' makes final a sum in another order than 'rank'");
  for (const std::string_view name : {"ring", "halving_doubling", "recursive_doubling"})
    found_out(claiming(name, Order::rank), 4, kAnother);
  found_out(claiming("ring", Order::tree), 4, kAnother);
  Algorithm never_pairwise = claiming("direct", Order::tree, true);
  never_pairwise.plan = [](const Spec& spec) {
    Spec without = spec;
    without.order = Order::rank;
    return algorithm_named(Collective::all_reduce, "direct").plan(without);
  };
  found_out(never_pairwise, 4, kAnother);
  CHECK_EQ(verify(never_pairwise, 2), "");  // two ranks have one order
}

TEST(operands_may_be_swapped_in_an_addition_and_not_between_additions) {
  const auto with_sources = [](std::vector<Buffer> sources) {
    Plans plans = plans_of(Collective::reduce, "direct", 4, 0, Order::rank);
    step_of(plans, 0, 1, 0).sources = std::move(sources);
    return plans;
  };
  const Buffer one = scratch(0), two = scratch(1), three = scratch(2);
  CHECK_EQ(verify(Collective::reduce, 0, with_sources({kInput, one, two, three}), {.order = Order::rank}),
           "");
  CHECK_EQ(verify(Collective::reduce, 0, with_sources({one, kInput, two, three}), {.order = Order::rank}),
           "");
  CHECK_FLAW(Collective::reduce, with_sources({kInput, two, one, three}), kAnother, {.order = Order::rank});
  CHECK_FLAW(Collective::reduce, with_sources({kInput, one, two, three}), kAnother, {.order = Order::tree});
  const auto pairwise = [&](std::vector<Buffer> sources) {
    Plans plans = with_sources(std::move(sources));
    step_of(plans, 0, 1, 0).pairwise = true;
    return plans;
  };
  CHECK_EQ(verify(Collective::reduce, 0, pairwise({three, two, kInput, one}), {.order = Order::tree}), "");
  CHECK_FLAW(Collective::reduce, pairwise({kInput, two, one, three}), kAnother, {.order = Order::tree});
  CHECK_FLAW(Collective::reduce, pairwise({kInput, one, two, three}), kAnother, {.order = Order::rank});
}

TEST(a_partial_sum_that_is_kept_is_found_where_sums_are_rounded_once) {
  found_out(claiming("halving_doubling", Order::tree, true), 4, "keeps the partial sum of ranks {");
  CHECK_EQ(verify(claiming("halving_doubling", Order::tree, true), 2), "");
  Plans plans = plans_of(Collective::reduce, "direct", 3);
  CHECK_EQ(verify(Collective::reduce, 0, plans, {.rounds_once = true}), "");
  plans[0].stages[1].steps = {reduce(0, scratch(2), {kInput, scratch(0)})};
  plans[0].stages.push_back({{as_final(reduce(0, kOutput, {scratch(2), scratch(1)}))}});
  CHECK_EQ(verify(Collective::reduce, 0, plans, {.order = Order::rank}), "");
  CHECK_FLAW(
      Collective::reduce, plans,
      "rank 0, stage 1, 'reduce chunk 0 of input, scratch[0] into scratch[2]' keeps the partial sum of "
      "ranks {0, 1}, which rounds it",
      {.rounds_once = true});
}

TEST(pairwise_belongs_to_sums_of_a_power_of_two_of_operands) {
  const auto flaw_of = [](Step step) {
    step.pairwise = true;
    return verify(Collective::all_reduce, 0, {{1, {{{step}}}}, {1, {}}, {1, {}}}, {});
  };
  const auto refused = [&](const Step& step, std::string_view why) {
    CHECK(flaw_of(step).find(why) != std::string::npos);
  };
  refused(copy(0, kInput, kOutput), "pairwise belongs to a reduce or a reduce_from");
  refused(recv_reduce(1, 0, kInput, kOutput), "pairwise belongs to a reduce or a reduce_from");
  refused(reduce(0, kOutput, {kInput, scratch(0), scratch(1)}),
          "3 operands are no power of two, to be added pairwise");
  refused(reduce_from({0, 1, 2}, 0, kInput, kOutput), "3 operands are no power of two");
}
