// The dissemination barrier (Hensgen, Finkel and Manber, "Two algorithms for barrier synchronization", 1988):
// in round k every rank tells rank + 2^k what it knows, so that after ceil(log2(N)) rounds it has heard of
// everyone.
#include "algorithm/ranks.h"

namespace pycomm {
namespace {

// Messages are empty; the slots make the order. The copy makes a round wait for all that was heard before,
// not only for the latest message.
Plan barrier(const Spec& spec) {
  const Buffer known = scratch(0), heard = scratch(1);
  Plan plan;
  for (int distance = 1; distance < spec.size; distance *= 2) {
    if (distance > 1) plan.add_stage().steps = {copy(0, heard, known)};
    plan.add_stage().steps = {send(wrap(spec.rank + distance, spec.size), 0, known),
                              recv(wrap(spec.rank - distance, spec.size), 0, heard)};
  }
  return plan;
}

double nothing(int) {
  return 0;
}

const Register<Algorithm> kBarrier({.name = "barrier:dissemination",
                                    .summary = "news spread at doubling distance",
                                    .plan = barrier,
                                    .volume = nothing});

}  // namespace
}  // namespace pycomm
