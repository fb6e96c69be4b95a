// What verify.h finds without looking at values. Internal to plan/; each function throws Flaw.
#pragma once

#include <vector>

#include "plan/schedule.h"

namespace pycomm {

// Every step is well formed: its peers, chunk and buffers exist, and marks are where they may be.
void check_steps(Collective collective, int root, const std::vector<Plan>& plans);

// Memory that a rank reaches on another one is reached between two meets of the two, and nobody else touches
// it between the same meets, unless all only read.
void check_races(const std::vector<Plan>& plans, const Schedule& schedule, bool in_place);

// Memory is reached within nodes only (`node_of` as in Spec).
void check_reach(const std::vector<Plan>& plans, const std::vector<int>& node_of);

// A barrier moves knowledge: a step knows what the steps it waits for know, and a message tells it on. When
// all its steps are complete, a rank knows that every rank has come.
void check_knowledge(int size, const Schedule& schedule);

// The busiest rank moves `expected` of the vector, as Algorithm::volume has it.
void check_volume(Collective collective, const std::vector<Plan>& plans, double expected);

// The busiest node sends `expected` of the vector to others, as Algorithm::volume_of_node has it.
void check_volume_of_node(const std::vector<Plan>& plans, const std::vector<int>& node_of, double expected);

}  // namespace pycomm
