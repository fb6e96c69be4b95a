// Direct: nothing passes through a third rank. The owner of a chunk gets all contributions and adds them in
// order of rank in one go, so that 16-bit data or wires are rounded once, not at every hop. As much traffic
// as the ring in two rounds, over N-1 connections at a time.
#include "algorithm/ranks.h"
#include "algorithm/volume.h"

namespace pycomm {
namespace {

// Contributions to this rank's chunk wait in one scratch slot per peer.
Buffer slot_of(int peer, const Spec& spec) {
  return scratch(peer < spec.rank ? peer : peer - 1);
}

void append_reduce_scatter(Plan& plan, const Spec& spec, Buffer result) {
  Stage& swap = plan.add_stage();
  for (int peer : other_ranks(spec)) {
    const int from = wrap(2 * spec.rank - peer, spec.size);  // whose turn it is to send here
    swap.steps.push_back(send(peer, peer, kInput));
    swap.steps.push_back(recv(from, spec.rank, slot_of(from, spec)));
  }
  std::vector<Buffer> contributions;
  for (int rank : all_ranks(spec)) contributions.push_back(rank == spec.rank ? kInput : slot_of(rank, spec));
  plan.add_stage().steps = {as_final(added_in(spec.order, reduce(spec.rank, result, contributions)))};
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
  append_reduce_scatter(plan, spec, kOutput);
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
  append_reduce_scatter(plan, spec, kOutput);
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

// The root keeps N-1 whole vectors aside.
Plan reduce(const Spec& spec) {
  Plan plan;
  if (spec.rank != spec.root) {
    plan.add_stage().steps = {send(spec.root, 0, kInput)};
    return plan;
  }
  Stage& collect = plan.add_stage();
  std::vector<Buffer> contributions;
  for (int peer : other_ranks(spec)) collect.steps.push_back(recv(peer, 0, slot_of(peer, spec)));
  for (int rank : all_ranks(spec)) contributions.push_back(rank == spec.rank ? kInput : slot_of(rank, spec));
  plan.add_stage().steps = {as_final(added_in(spec.order, reduce(0, kOutput, contributions)))};
  return plan;
}

void append_gather(Plan& plan, const Spec& spec, Buffer own) {
  Stage& collect = plan.add_stage();
  if (spec.rank != spec.root) {
    collect.steps = {send(spec.root, spec.rank, own)};
  } else {
    for (int peer : other_ranks(spec)) collect.steps.push_back(recv(peer, peer, kOutput));
  }
}

Plan reduce_scatter_gather(const Spec& spec) {
  const Buffer own = spec.rank == spec.root ? kOutput : scratch(spec.size - 1);
  Plan plan{.chunks = spec.size};
  append_reduce_scatter(plan, spec, own);
  append_gather(plan, spec, own);
  return plan;
}

Plan gather(const Spec& spec) {
  Plan plan{.chunks = spec.size};
  if (spec.rank == spec.root) plan.add_stage().steps = {copy(spec.rank, kInput, kOutput)};
  append_gather(plan, spec, kInput);
  return plan;
}

Plan scatter(const Spec& spec) {
  Plan plan{.chunks = spec.size};
  Stage& stage = plan.add_stage();
  if (spec.rank != spec.root) {
    stage.steps = {recv(spec.root, spec.rank, kOutput)};
  } else {
    for (int peer : other_ranks(spec)) stage.steps.push_back(send(peer, peer, kInput));
    stage.steps.push_back(copy(spec.rank, kInput, kOutput));
  }
  return plan;
}

Plan all_to_all(const Spec& spec) {
  const auto block = [&](int source, int target) { return source * spec.size + target; };
  Plan plan{.chunks = spec.size * spec.size};
  Stage& stage = plan.add_stage();
  for (int peer : other_ranks(spec)) {
    const int from = wrap(2 * spec.rank - peer, spec.size);
    stage.steps.push_back(send(peer, block(spec.rank, peer), kInput));
    stage.steps.push_back(recv(from, block(from, spec.rank), kOutput));
  }
  stage.steps.push_back(copy(block(spec.rank, spec.rank), kInput, kOutput));
  return plan;
}

const Register<Algorithm> kReduceScatter(
    {.name = "reduce_scatter:direct",
     .summary = "every contribution straight to its owner, added in one go",
     .plan = reduce_scatter,
     .volume = one_pass,
     .orders = {Order::rank, Order::tree},
     .rounds_once = true});
const Register<Algorithm> kAllGather({.name = "all_gather:direct",
                                      .summary = "every chunk straight to every rank",
                                      .plan = all_gather,
                                      .volume = one_pass});
const Register<Algorithm> kAllReduce(
    {.name = "all_reduce:direct",
     .summary = "every contribution to its owner, every result back; 16-bit wires",
     .plan = all_reduce,
     .volume = two_passes,
     .orders = {Order::rank, Order::tree},
     .rounds_once = true});
const Register<Algorithm> kBroadcast({.name = "broadcast:direct",
                                      .summary = "the root sends to every rank",
                                      .plan = broadcast,
                                      .volume = to_everyone});

const Register<Algorithm> kReduce(
    {.name = "reduce:direct",
     .summary = "every vector straight to the root, added in one go; 16-bit wires, short vectors",
     .plan = reduce,
     .volume = one_vector,
     .orders = {Order::rank, Order::tree},
     .rounds_once = true});
const Register<Algorithm> kReduceScatterGather(
    {.name = "reduce:scatter_gather",
     .summary = "every contribution to its owner, results to the root; 16-bit wires, long vectors",
     .plan = reduce_scatter_gather,
     .volume = one_vector,
     .orders = {Order::rank, Order::tree},
     .rounds_once = true});
const Register<Algorithm> kGather({.name = "gather:direct",
                                   .summary = "every chunk straight to the root",
                                   .plan = gather,
                                   .volume = own_chunk});
const Register<Algorithm> kScatter({.name = "scatter:direct",
                                    .summary = "every chunk straight from the root",
                                    .plan = scatter,
                                    .volume = one_pass});
const Register<Algorithm> kAllToAll({.name = "all_to_all:direct",
                                     .summary = "every block straight to its rank",
                                     .plan = all_to_all,
                                     .volume = own_blocks});

}  // namespace
}  // namespace pycomm
