// The steps of all ranks as one graph, in an order in which they can run: the half of verify.h that asks
// when, not what. Internal to plan/.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace pycomm {

// What is wrong with the plans, in words; verify() catches it and returns the text.
struct Flaw : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Numbers the places that a rank's steps touch. In place, input and output are the same places; a scratch
// slot is one place whatever the chunk.
struct Places {
  int chunks = 1;
  bool in_place = false;

  int of(Buffer buffer, int chunk) const {
    if (is_scratch(buffer)) return 2 * chunks + buffer.id - 2;
    return buffer == kInput && !in_place ? chunks + chunk : chunk;
  }
};

struct Access {
  int place = 0;
  bool write = false;
};

// What a step touches on its own rank.
std::vector<Access> accesses(const Step& step, const Places& places);

struct Node {
  int rank = 0;
  int stage = 0;
  int epoch = 0;  // meets of this rank before this stage
  const Step* step = nullptr;
  std::vector<int> after;  // nodes that must be complete before this one starts
};

// "rank 3, stage 1, 'send chunk 2 of input to 4'"
std::string where(const Node& node);

struct Schedule {
  std::vector<Node> nodes;  // by rank, stage, position; they point into the plans
  // Nodes that complete together: one local step; the send and the recv of a message, in that order; the
  // meets of a group. In an order that runs every step after those it waits for.
  std::vector<std::vector<int>> events;
};

// Throws Flaw on steps of one stage that conflict, messages or meets that do not match, and deadlocks. Since
// sends complete with their receives, the plans deadlock exactly when the events wait for each other in a
// circle.
Schedule schedule(const std::vector<Plan>& plans, bool in_place);

}  // namespace pycomm
