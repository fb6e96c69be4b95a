// Direct: every rank talks to every other. The owner of a chunk gets all contributions and adds them in order
// of rank in one go, so that 16-bit data or wires are rounded once, not at every hop. As much traffic as the
// ring in two rounds, over N-1 connections at a time.
#include "algorithm/ranks.h"

namespace pycomm {
namespace {

// Contributions to this rank's chunk wait in one scratch slot per peer.
Buffer slot_of(int peer, const Spec& spec) {
  return scratch(peer < spec.rank ? peer : peer - 1);
}

void append_reduce_scatter(Plan& plan, const Spec& spec) {
  Stage& swap = plan.add_stage();
  for (int peer : other_ranks(spec)) {
    const int from = wrap(2 * spec.rank - peer, spec.size);  // whose turn it is to send here
    swap.steps.push_back(send(peer, peer, kInput));
    swap.steps.push_back(recv(from, spec.rank, slot_of(from, spec)));
  }
  std::vector<Buffer> contributions;
  for (int rank : all_ranks(spec)) contributions.push_back(rank == spec.rank ? kInput : slot_of(rank, spec));
  plan.add_stage().steps = {as_final(reduce(spec.rank, kOutput, contributions))};
}

void append_all_gather(Plan& plan, const Spec& spec) {
  Stage& swap = plan.add_stage();
  for (int peer : other_ranks(spec)) {
    const int from = wrap(2 * spec.rank - peer, spec.size);
    swap.steps.push_back(published(send(peer, spec.rank, kOutput)));
    swap.steps.push_back(recv(from, from, kOutput));
  }
}

Plan reduce_scatter(const Spec& spec) {
  Plan plan{.chunks = spec.size};
  append_reduce_scatter(plan, spec);
  return plan;
}

Plan all_gather(const Spec& spec) {
  Plan plan{.chunks = spec.size};
  plan.add_stage().steps = {copy(spec.rank, kInput, kOutput)};
  append_all_gather(plan, spec);
  return plan;
}

Plan all_reduce(const Spec& spec) {
  Plan plan{.chunks = spec.size};
  append_reduce_scatter(plan, spec);
  append_all_gather(plan, spec);
  return plan;
}

Plan broadcast(const Spec& spec) {
  Plan plan;
  Stage& stage = plan.add_stage();
  if (spec.rank != spec.root) {
    stage.steps = {recv(spec.root, 0, kOutput)};
  } else {
    for (int peer : other_ranks(spec)) stage.steps.push_back(published(send(peer, 0, kOutput)));
  }
  return plan;
}

double one_pass(int size) {
  return double(size - 1) / size;
}
double two_passes(int size) {
  return 2 * one_pass(size);
}
double to_everyone(int size) {
  return size - 1;
}

const Register<Algorithm> kReduceScatter(
    {.name = "reduce_scatter:direct",
     .summary = "every contribution straight to its owner, added in one go",
     .plan = reduce_scatter,
     .volume = one_pass});
const Register<Algorithm> kAllGather({.name = "all_gather:direct",
                                      .summary = "every chunk straight to every rank",
                                      .plan = all_gather,
                                      .volume = one_pass});
const Register<Algorithm> kAllReduce(
    {.name = "all_reduce:direct",
     .summary = "every contribution to its owner, every result back; 16-bit wires",
     .plan = all_reduce,
     .volume = two_passes});
const Register<Algorithm> kBroadcast({.name = "broadcast:direct",
                                      .summary = "the root sends to every rank",
                                      .plan = broadcast,
                                      .volume = to_everyone});

}  // namespace
}  // namespace pycomm
