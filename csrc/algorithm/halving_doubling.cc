// Halving and doubling, for powers of two (Rabenseifner, "Optimization of collective reduction operations",
// 2004): as little traffic as the ring in 2 log2(N) rounds instead of 2(N-1).
//
// Rank r is responsible for the chunks that agree with r in the binary digits settled so far. Halving settles
// the digit `distance`, from 1 upwards: the partner takes the chunks with its digit. When all are settled,
// chunk r alone is left, summed as ((r0+r1)+(r2+r3))+...; doubling goes back the same way. The nearest ranks
// swap the most, and they are the likeliest to share a machine.
#include <bit>

#include "algorithm/ranks.h"

namespace pycomm {
namespace {

// Whether rank and chunk have the same binary digits below `digit`, a power of two.
bool agree_below(int digit, int rank, int chunk) {
  return ((rank ^ chunk) & (digit - 1)) == 0;
}

Stage halve(const Spec& spec, int distance) {
  const int partner = spec.rank ^ distance;
  const Buffer src = distance == 1 ? kInput : kOutput;
  Stage stage;
  for (int chunk = 0; chunk < spec.size; ++chunk) {
    if (agree_below(2 * distance, partner, chunk)) stage.steps.push_back(send(partner, chunk, src));
    if (!agree_below(2 * distance, spec.rank, chunk)) continue;
    const Step add = recv_reduce(partner, chunk, src, kOutput);
    stage.steps.push_back(2 * distance == spec.size ? as_final(add) : add);
  }
  return stage;
}

Stage double_up(const Spec& spec, int distance) {
  const int partner = spec.rank ^ distance;
  const bool first = 2 * distance == spec.size;
  Stage stage;
  for (int chunk = 0; chunk < spec.size; ++chunk) {
    const Step pass = send(partner, chunk, kOutput);
    if (agree_below(2 * distance, spec.rank, chunk)) stage.steps.push_back(first ? published(pass) : pass);
    if (agree_below(2 * distance, partner, chunk)) stage.steps.push_back(recv(partner, chunk, kOutput));
  }
  return stage;
}

Plan all_reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  Plan plan{.chunks = spec.size};
  for (int distance = 1; distance < spec.size; distance *= 2) plan.stages.push_back(halve(spec, distance));
  for (int distance = spec.size / 2; distance > 0; distance /= 2)
    plan.stages.push_back(double_up(spec, distance));
  return plan;
}

bool is_power_of_two(int size) {
  return std::has_single_bit(static_cast<unsigned>(size));
}
double volume(int size) {
  return 2.0 * (size - 1) / size;
}

const Register<Algorithm> kAllReduce(
    {.name = "all_reduce:halving_doubling",
     .summary = "halves swapped at doubling distance, then gathered; middle sizes",
     .plan = all_reduce,
     .supports = is_power_of_two,
     .volume = volume});

}  // namespace
}  // namespace pycomm
