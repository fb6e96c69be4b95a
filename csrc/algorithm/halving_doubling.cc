// Halving and doubling (Rabenseifner, "Optimization of collective reduction operations", 2004): among a power
// of two of ranks, as little traffic as the ring in 2 log2(N) rounds instead of 2(N-1).
//
// Member m is responsible for the chunks that agree with m in the binary digits settled so far. Halving
// settles the digit `distance`, from 1 upwards: the partner takes the chunks with its digit. When all are
// settled, chunk m alone is left, summed as ((m0+m1)+(m2+m3))+...; doubling goes back the same way. The
// nearest ranks swap the most, and they are the likeliest to share a machine.
//
// With N not a power of two, the extra ranks (members.h) give their whole contribution first and get all
// chunks in the end. Their member forwards what its owner published, so that they have everyone's bits under
// a lossy codec too.
#include "algorithm/members.h"
#include "algorithm/ranks.h"

namespace pycomm {
namespace {

// Whether member and chunk have the same binary digits below `digit`, a power of two.
bool agree_below(int digit, int member, int chunk) {
  return ((member ^ chunk) & (digit - 1)) == 0;
}

Stage halve(const Members& group, int member, int distance) {
  const int partner = member ^ distance, peer = group.rank_of(partner);
  const Buffer src = distance == 1 && !group.has_extra(member) ? kInput : kOutput;
  Stage stage;
  for (int chunk = 0; chunk < group.count; ++chunk) {
    if (agree_below(2 * distance, partner, chunk)) stage.steps.push_back(send(peer, chunk, src));
    if (!agree_below(2 * distance, member, chunk)) continue;
    const Step add = recv_reduce(peer, chunk, src, kOutput);
    stage.steps.push_back(2 * distance == group.count ? as_final(add) : add);
  }
  return stage;
}

Stage double_up(const Members& group, int member, int distance) {
  const int partner = member ^ distance, peer = group.rank_of(partner);
  const bool first = 2 * distance == group.count;
  Stage stage;
  for (int chunk = 0; chunk < group.count; ++chunk) {
    const Step pass = send(peer, chunk, kOutput);
    if (agree_below(2 * distance, member, chunk)) stage.steps.push_back(first ? published(pass) : pass);
    if (agree_below(2 * distance, partner, chunk)) stage.steps.push_back(recv(peer, chunk, kOutput));
  }
  return stage;
}

Plan extra_plan(const Members& group, int rank) {
  Plan plan{.chunks = group.count, .stages = std::vector<Stage>(2)};
  for (int chunk = 0; chunk < group.count; ++chunk) {
    plan.stages[0].steps.push_back(send(rank - 1, chunk, kInput));
    plan.stages[1].steps.push_back(recv(rank - 1, chunk, kOutput));
  }
  return plan;
}

Plan member_plan(const Members& group, int rank) {
  const int member = group.member_of(rank);
  Stage take, give;
  for (int chunk = 0; chunk < group.count && group.has_extra(member); ++chunk) {
    take.steps.push_back(recv_reduce(rank + 1, chunk, kInput, kOutput));
    give.steps.push_back(send(rank + 1, chunk, kOutput));
  }
  Plan plan{.chunks = group.count};
  if (group.has_extra(member)) plan.stages.push_back(take);
  for (int distance = 1; distance < group.count; distance *= 2)
    plan.stages.push_back(halve(group, member, distance));
  for (int distance = group.count / 2; distance > 0; distance /= 2)
    plan.stages.push_back(double_up(group, member, distance));
  if (group.has_extra(member)) plan.stages.push_back(give);
  return plan;
}

Plan all_reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const Members group(spec.size);
  return group.is_extra(spec.rank) ? extra_plan(group, spec.rank) : member_plan(group, spec.rank);
}

// A member that has an extra also sends it the vector.
double volume(int size) {
  const Members group(size);
  return 2.0 * (group.count - 1) / group.count + (group.extras > 0);
}

const Register<Algorithm> kAllReduce(
    {.name = "all_reduce:halving_doubling",
     .summary = "halves swapped at doubling distance, then gathered; middle sizes",
     .plan = all_reduce,
     .volume = volume,
     .orders = {Order::tree}});

}  // namespace
}  // namespace pycomm
