// One rank sends its vector to another; each of the two makes its own call, with the other as root.
#include "algorithm/ranks.h"

namespace pycomm {
namespace {

Plan send_plan(const Spec& spec) {
  Plan plan;
  plan.add_stage().steps = {send(spec.root, 0, kInput)};
  return plan;
}

Plan recv_plan(const Spec& spec) {
  Plan plan;
  plan.add_stage().steps = {recv(spec.root, 0, kOutput)};
  return plan;
}

bool has_a_peer(int size) {
  return size > 1;
}
double whole_vector(int) {
  return 1;
}

const Register<Algorithm> kSend({.name = "send:direct",
                                 .summary = "one message",
                                 .plan = send_plan,
                                 .supports = has_a_peer,
                                 .volume = whole_vector});
const Register<Algorithm> kRecv({.name = "recv:direct",
                                 .summary = "one message",
                                 .plan = recv_plan,
                                 .supports = has_a_peer,
                                 .volume = whole_vector});

}  // namespace
}  // namespace pycomm
