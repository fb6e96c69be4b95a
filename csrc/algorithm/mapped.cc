// For ranks that can address each other's memory. Between two meetings every rank reads the contributions to
// its own chunk from where they lie and stores the sum where the others want it: no copy on the side, no
// wire, one pass. The executor goes by segments, so that a sum is stored while it is still in the cache.
#include "algorithm/ranks.h"
#include "algorithm/volume.h"

namespace pycomm {
namespace {

// The work lies between two meetings: peers' buffers are ready after the first and in use until the second.
Plan between_meetings(const Spec& spec, int chunks, const std::vector<Step>& work) {
  Plan plan{.chunks = chunks};
  plan.add_stage().steps = {meet(other_ranks(spec))};
  for (const Step& step : work) plan.add_stage().steps = {step};
  plan.add_stage().steps = {meet(other_ranks(spec))};
  return plan;
}

Step sum_of_own_chunk(const Spec& spec, Buffer result) {
  return as_final(added_in(spec.order, reduce_from(all_ranks(spec), spec.rank, kInput, result)));
}

Step own_chunk_to_all(const Spec& spec) {
  return store_to(other_ranks(spec), spec.rank, kOutput, kOutput);
}

Plan all_reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  return between_meetings(spec, spec.size, {sum_of_own_chunk(spec, kOutput), own_chunk_to_all(spec)});
}

Plan reduce_scatter(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  return between_meetings(spec, spec.size, {sum_of_own_chunk(spec, kOutput)});
}

Plan all_gather(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  return between_meetings(
      spec, spec.size,
      {store_to(other_ranks(spec), spec.rank, kInput, kOutput), copy(spec.rank, kInput, kOutput)});
}

Plan broadcast(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  if (spec.rank != spec.root) return between_meetings(spec, 1, {});
  return between_meetings(spec, 1, {store_to(other_ranks(spec), 0, kOutput, kOutput)});
}

// Every rank adds its chunk and stores it at the root.
Plan reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  if (spec.rank == spec.root) return between_meetings(spec, spec.size, {sum_of_own_chunk(spec, kOutput)});
  return between_meetings(
      spec, spec.size,
      {sum_of_own_chunk(spec, scratch(0)), store_to({spec.root}, spec.rank, scratch(0), kOutput)});
}

Plan gather(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  return between_meetings(spec, spec.size,
                          {spec.rank == spec.root ? copy(spec.rank, kInput, kOutput)
                                                  : store_to({spec.root}, spec.rank, kInput, kOutput)});
}

Plan scatter(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  if (spec.rank != spec.root) return between_meetings(spec, spec.size, {});
  std::vector<Step> work = {copy(spec.rank, kInput, kOutput)};
  for (int peer : other_ranks(spec)) work.push_back(store_to({peer}, peer, kInput, kOutput));
  return between_meetings(spec, spec.size, work);
}

Plan all_to_all(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const int first = spec.rank * spec.size;
  std::vector<Step> work = {copy(first + spec.rank, kInput, kOutput)};
  for (int peer : other_ranks(spec)) work.push_back(store_to({peer}, first + peer, kInput, kOutput));
  return between_meetings(spec, spec.size * spec.size, work);
}

const Register<Algorithm> kAllReduce({.name = "all_reduce:mapped",
                                      .summary = "read from and store to the peers' memory",
                                      .plan = all_reduce,
                                      .volume = two_passes,
                                      .lossy_codecs = false,
                                      .orders = {Order::rank, Order::tree},
                                      .rounds_once = true,
                                      .mapped = true});
const Register<Algorithm> kReduceScatter({.name = "reduce_scatter:mapped",
                                          .summary = "read from the peers' memory",
                                          .plan = reduce_scatter,
                                          .volume = one_pass,
                                          .lossy_codecs = false,
                                          .orders = {Order::rank, Order::tree},
                                          .rounds_once = true,
                                          .mapped = true});
const Register<Algorithm> kAllGather({.name = "all_gather:mapped",
                                      .summary = "store to the peers' memory",
                                      .plan = all_gather,
                                      .volume = one_pass,
                                      .lossy_codecs = false,
                                      .mapped = true});
const Register<Algorithm> kBroadcast({.name = "broadcast:mapped",
                                      .summary = "the root stores to the peers' memory",
                                      .plan = broadcast,
                                      .volume = to_everyone,
                                      .lossy_codecs = false,
                                      .mapped = true});

const Register<Algorithm> kReduce({.name = "reduce:mapped",
                                   .summary = "every rank adds a chunk and stores it at the root",
                                   .plan = reduce,
                                   .volume = pass_and_own_chunk,
                                   .lossy_codecs = false,
                                   .orders = {Order::rank, Order::tree},
                                   .rounds_once = true,
                                   .mapped = true});
const Register<Algorithm> kGather({.name = "gather:mapped",
                                   .summary = "every rank stores to the root's memory",
                                   .plan = gather,
                                   .volume = own_chunk,
                                   .lossy_codecs = false,
                                   .mapped = true});
const Register<Algorithm> kScatter({.name = "scatter:mapped",
                                    .summary = "the root stores to the peers' memory",
                                    .plan = scatter,
                                    .volume = one_pass,
                                    .lossy_codecs = false,
                                    .mapped = true});
const Register<Algorithm> kAllToAll({.name = "all_to_all:mapped",
                                     .summary = "store to the peers' memory",
                                     .plan = all_to_all,
                                     .volume = own_blocks,
                                     .lossy_codecs = false,
                                     .uneven = false,  // where a block begins there, only its rank knows
                                     .mapped = true});

}  // namespace
}  // namespace pycomm
