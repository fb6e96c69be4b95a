// Broadcast down a binomial tree: in every round each rank that has the vector sends it to one that has not,
// so that ceil(log2(N)) rounds reach all. Best for short vectors.
#include <bit>

#include "algorithm/ranks.h"

namespace pycomm {
namespace {

// Counted from the root, rank v has its vector from v without its lowest binary digit, and serves v + d for
// every digit d below that, the largest subtree first.
Plan broadcast(const Spec& spec) {
  const int self = wrap(spec.rank - spec.root, spec.size);
  const auto rank_of = [&](int from_root) { return wrap(from_root + spec.root, spec.size); };
  const bool is_root = self == 0;
  const int digit =
      is_root ? static_cast<int>(std::bit_ceil(static_cast<unsigned>(spec.size))) : self & -self;
  Plan plan;
  if (!is_root) plan.add_stage().steps = {recv(rank_of(self - digit), 0, kOutput)};
  Stage& serve = plan.add_stage();
  for (int d = digit / 2; d > 0; d /= 2) {
    if (self + d >= spec.size) continue;
    const Step pass = send(rank_of(self + d), 0, kOutput);
    serve.steps.push_back(is_root ? published(pass) : pass);
  }
  return plan;
}

double volume(int size) {
  return std::bit_width(static_cast<unsigned>(size) - 1);
}

const Register<Algorithm> kBroadcast({.name = "broadcast:binomial",
                                      .summary = "down a binomial tree; short vectors",
                                      .plan = broadcast,
                                      .volume = volume});

}  // namespace
}  // namespace pycomm
