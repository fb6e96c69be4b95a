// An algorithm that the caller wrote, for one communicator: the plans of all its ranks, proven right before
// they are used, and this rank's ready to run.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/compiled_plan.h"
#include "plan/plan.h"

namespace pycomm {

class OwnAlgorithm {
 public:
  // `plans[r]` is rank r's; `node_of` is as in Spec. Throws InvalidArgument with what verify() finds wrong.
  OwnAlgorithm(Collective collective, int root, const std::string& name, const std::vector<Plan>& plans,
               int rank, const std::vector<int>& node_of);

  // As a registered one, without a function; `lossy_codecs` and `mapped` are what the plans turn out to keep
  // and to need: one that reaches memory within nodes only is not `mapped`.
  const Algorithm& algorithm() const { return algorithm_; }
  int root() const { return root_; }
  int size() const { return size_; }
  // Of all ranks' plans: ranks that have equal ones can work together.
  std::uint32_t digest() const { return digest_; }
  std::shared_ptr<const CompiledPlan> compiled(bool in_place) const { return compiled_[in_place]; }

 private:
  Algorithm algorithm_;
  int root_;
  int size_;
  std::uint32_t digest_ = 0;
  std::array<std::shared_ptr<const CompiledPlan>, 2> compiled_;
};

}  // namespace pycomm
