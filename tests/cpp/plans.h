// Plans of all ranks, to be verified or spoiled.
#pragma once

#include <functional>

#include "check.h"
#include "plan/verify.h"

using Plans = std::vector<pycomm::Plan>;

namespace pycomm {

inline Plans plans_of(Collective collective, std::string_view name, int size, int root = 0,
                      const std::vector<int>& node_of = {}) {
  Plans plans;
  const Algorithm& algorithm = algorithm_named(collective, name);
  for (int rank = 0; rank < size; ++rank)
    plans.push_back(algorithm.plan({collective, rank, size, root, node_of}));
  return plans;
}

// The same stages for every rank, as a function of the rank.
inline Plans plans_from(int size, int chunks, const std::function<std::vector<Stage>(int rank)>& stages) {
  Plans plans;
  for (int rank = 0; rank < size; ++rank) plans.push_back({chunks, stages(rank)});
  return plans;
}

inline Step& step_of(Plans& plans, int rank, int stage, int step) {
  return plans[rank].stages[stage].steps[step];
}

inline void erase_step(Plans& plans, int rank, int stage, int step) {
  auto& steps = plans[rank].stages[stage].steps;
  steps.erase(steps.begin() + step);
}

inline void erase_stage(Plan& plan, int stage) {
  plan.stages.erase(plan.stages.begin() + stage);
}

}  // namespace pycomm

// `plans` are wrong, and the text says `part`.
#define CHECK_FLAW(collective, plans, part, ...)                                       \
  do {                                                                                 \
    const std::string flaw_ = verify(collective, 0, plans, VerifyOptions __VA_ARGS__); \
    ++check::checks();                                                                 \
    if (flaw_.find(part) == std::string::npos)                                         \
      check::fail(__FILE__, __LINE__, "'", flaw_, "' does not say '", part, "'");      \
  } while (false)
