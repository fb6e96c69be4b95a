// The ring (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
// 2009). Every rank sends only to the next rank and receives only from the previous one; 2(N-1) stages move
// 2(N-1)/N of the vector, the least that any all_reduce can do. Best for long vectors.
#include "algorithm/ranks.h"
#include "algorithm/volume.h"

namespace pycomm {
namespace {

// Stage s receives the partial sum of chunk rank-2-s, adds this rank's contribution and puts the result into
// sum_of(s, last); the next stage sends it on. After the last stage every rank holds the sum of chunk
// `rank`.
void append_reduce_scatter(Plan& plan, const Spec& spec, Buffer (*sum_of)(int stage, int last)) {
  const int next = wrap(spec.rank + 1, spec.size), previous = wrap(spec.rank - 1, spec.size);
  const int last = spec.size - 2;
  Buffer src = kInput;
  for (int s = 0; s <= last; ++s) {
    const Buffer dst = sum_of(s, last);
    const int chunk = wrap(spec.rank - 2 - s, spec.size);
    const Step add = recv_reduce(previous, chunk, kInput, dst);
    plan.add_stage().steps = {send(next, wrap(chunk + 1, spec.size), src), s == last ? as_final(add) : add};
    src = dst;
  }
}

// Stage s forwards chunk rank-s, which stage s-1 received; the first stage sends this rank's own.
void append_all_gather(Plan& plan, const Spec& spec) {
  const int next = wrap(spec.rank + 1, spec.size), previous = wrap(spec.rank - 1, spec.size);
  for (int s = 0; s < spec.size - 1; ++s) {
    const int chunk = wrap(spec.rank - s, spec.size);
    const Step pass = send(next, chunk, kOutput);
    plan.add_stage().steps = {s == 0 ? published(pass) : pass,
                              recv(previous, wrap(chunk - 1, spec.size), kOutput)};
  }
}

Buffer sum_in_output(int, int) {
  return kOutput;
}

Buffer sum_in_scratch(int stage, int) {
  return scratch(stage % 2);
}

// The output of reduce_scatter has room for the rank's own chunk only.
Buffer last_sum_in_output(int stage, int last) {
  return stage == last ? kOutput : scratch(stage % 2);
}

Plan reduce_scatter(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  Plan plan{.chunks = spec.size};
  append_reduce_scatter(plan, spec, last_sum_in_output);
  return plan;
}

// After the ring the root collects the chunks from their owners.
Plan reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const bool is_root = spec.rank == spec.root;
  Plan plan{.chunks = spec.size};
  append_reduce_scatter(plan, spec, is_root ? last_sum_in_output : sum_in_scratch);
  const Buffer own = plan.stages.back().steps[1].dst;
  Stage& collect = plan.add_stage();
  if (!is_root) collect.steps = {send(spec.root, spec.rank, own)};
  for (int peer : other_ranks(spec))
    if (is_root) collect.steps.push_back(recv(peer, peer, kOutput));
  return plan;
}

Plan all_gather(const Spec& spec) {
  Plan plan{.chunks = spec.size};
  plan.add_stage().steps = {copy(spec.rank, kInput, kOutput)};
  append_all_gather(plan, spec);
  return plan;
}

Plan all_reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  Plan plan{.chunks = spec.size};
  append_reduce_scatter(plan, spec, sum_in_output);
  append_all_gather(plan, spec);
  return plan;
}

const Register<Algorithm> kReduceScatter({.name = "reduce_scatter:ring",
                                          .summary = "partial sums travel round a ring of neighbours",
                                          .plan = reduce_scatter,
                                          .volume = one_pass});
const Register<Algorithm> kAllGather({.name = "all_gather:ring",
                                      .summary = "chunks travel round a ring of neighbours",
                                      .plan = all_gather,
                                      .volume = one_pass});
const Register<Algorithm> kAllReduce({.name = "all_reduce:ring",
                                      .summary = "reduce_scatter then all_gather round a ring; long vectors",
                                      .plan = all_reduce,
                                      .volume = two_passes});

const Register<Algorithm> kReduce({.name = "reduce:ring",
                                   .summary = "reduce_scatter round a ring, chunks to the root; long vectors",
                                   .plan = reduce,
                                   .volume = pass_and_own_chunk});

}  // namespace
}  // namespace pycomm
