// Recursive doubling: in each round a rank swaps its whole sum with a partner twice as far away as before,
// and both add the two in the same order. log2(N) rounds of the whole vector: best for short ones.
//
// With N not a power of two, the extra ranks (members.h) first give their contributions. In the last round an
// extra gets both operands of the sum, not the sum: it adds them as everyone does, one round earlier, and
// ends with everyone's bits under a lossy codec too.
#include <bit>

#include "algorithm/members.h"
#include "algorithm/ranks.h"

namespace pycomm {
namespace {

// The sum so far of this rank and the partner's, lower member first.
Step add_both(bool own_is_lower, Buffer own, Buffer theirs) {
  return own_is_lower ? reduce(0, kOutput, {own, theirs}) : reduce(0, kOutput, {theirs, own});
}

Plan extra_plan(const Members& group, int rank) {
  const int member = group.member_of(rank), across = member ^ (group.count / 2);
  Plan plan;
  plan.add_stage().steps = {send(rank - 1, 0, kInput)};
  plan.add_stage().steps = {recv(group.rank_of(member), 0, scratch(0)),
                            recv(group.rank_of(across), 0, scratch(1))};
  plan.add_stage().steps = {as_final(add_both(member < across, scratch(0), scratch(1)))};
  return plan;
}

Plan member_plan(const Members& group, int rank) {
  const int member = group.member_of(rank);
  Plan plan;
  plan.add_stage().steps = {group.has_extra(member) ? recv_reduce(rank + 1, 0, kInput, kOutput)
                                                    : copy(0, kInput, kOutput)};
  for (int distance = 1, round = 0; distance < group.count; distance *= 2, ++round) {
    const bool last = 2 * distance == group.count;
    const int partner = member ^ distance;
    const Buffer theirs = scratch(round % 2);
    Stage& exchange = plan.add_stage();
    exchange.steps = {published(send(group.rank_of(partner), 0, kOutput)),
                      recv(group.rank_of(partner), 0, theirs)};
    for (int listener : {member, partner})
      if (last && group.has_extra(listener))
        exchange.steps.push_back(published(send(group.rank_of(listener) + 1, 0, kOutput)));
    const Step add = add_both(member < partner, kOutput, theirs);
    plan.add_stage().steps = {last ? as_final(add) : add};
  }
  return plan;
}

Plan all_reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const Members group(spec.size);
  return group.is_extra(spec.rank) ? extra_plan(group, spec.rank) : member_plan(group, spec.rank);
}

// Every round sends the vector once; in the last one a member also serves its own and its partner's extra.
double volume(int size) {
  const Members group(size);
  const int rounds = std::bit_width(static_cast<unsigned>(group.count)) - 1;
  return rounds + (group.extras > 0) + (group.extras > group.count / 2);
}

const Register<Algorithm> kAllReduce({.name = "all_reduce:recursive_doubling",
                                      .summary = "whole vectors swapped at doubling distance; short vectors",
                                      .plan = all_reduce,
                                      .volume = volume,
                                      .orders = {Order::tree}});

}  // namespace
}  // namespace pycomm
