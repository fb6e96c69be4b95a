// A plan made ready to run: its steps in one list, what each waits for, and the channels along which its
// messages travel. Depends on the plan and on whether input and output are the same memory, not on sizes:
// communicators keep compiled plans.
#pragma once

#include <vector>

#include "plan/plan.h"

namespace pycomm {

struct CompiledStep {
  Step step;
  int stage = 0;
  // Steps that must have finished segment k before this one may touch its segment k ...
  std::vector<int> after;
  // ... and steps that must have finished altogether.
  std::vector<int> after_all;
};

// All messages in one direction between this rank and one peer, in the order in which they travel.
struct Channel {
  int peer = 0;
  bool outgoing = false;
  std::vector<int> steps;
};

struct CompiledPlan {
  explicit CompiledPlan(const Plan& plan, bool in_place);

  int chunks = 1;
  int stages = 0;
  int scratch_slots = 0;
  bool mapped = false;
  std::vector<CompiledStep> steps;
  std::vector<Channel> channels;
  std::vector<int> local;  // steps that send and receive nothing, in order
};

}  // namespace pycomm
