// A plan made ready to run: its steps in one list, what each waits for, and the channels along which its
// messages travel. Depends on the plan and on whether input and output are the same memory, not on sizes:
// communicators keep compiled plans.
#pragma once

#include <functional>
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

// A chunk of ours that peers read or write where it lies.
struct ExposedChunk {
  Buffer buffer;
  int chunk = 0;
  bool read = false;  // what it holds before the call is needed
  bool written = false;
};

struct CompiledPlan {
  CompiledPlan(const Plan& plan, bool in_place);
  // The same where peers may be met: what they touch here stands in their plans.
  CompiledPlan(const std::function<Plan(int rank)>& plan_of, int rank, int size, bool in_place);

  const ExposedChunk* find_exposed(Buffer buffer, int chunk) const;

  bool in_place = false;
  int chunks = 1;
  int stages = 0;
  int scratch_slots = 0;
  std::vector<int> met;   // the ranks whose memory it touches, and that touch ours: those it meets
  bool messages = false;  // it sends or receives, besides meeting
  std::vector<CompiledStep> steps;
  std::vector<Channel> channels;
  std::vector<int> local;             // steps that send and receive nothing, in order
  std::vector<ExposedChunk> exposed;  // in order of chunk; in place an input and an output are one

 private:
  ExposedChunk& expose(Buffer buffer, int chunk);
};

}  // namespace pycomm
