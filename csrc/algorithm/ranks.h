// Ranks as the algorithms speak of them.
#pragma once

#include <vector>

#include "plan/plan.h"

namespace pycomm {

// Ranks, and chunks numbered like ranks, lie on a circle.
inline int wrap(int number, int size) {
  return (number % size + size) % size;
}

inline std::vector<int> all_ranks(const Spec& spec) {
  std::vector<int> ranks;
  for (int rank = 0; rank < spec.size; ++rank) ranks.push_back(rank);
  return ranks;
}

// The ranks after this one, then those before it: in the listed order no two ranks begin with the same peer.
inline std::vector<int> other_ranks(const Spec& spec) {
  std::vector<int> ranks;
  for (int i = 1; i < spec.size; ++i) ranks.push_back(wrap(spec.rank + i, spec.size));
  return ranks;
}

// Ranks counted from the root, as trees see them: the root is 0.
inline int from_root(const Spec& spec, int rank) {
  return wrap(rank - spec.root, spec.size);
}
inline int rank_of(const Spec& spec, int from_root) {
  return wrap(from_root + spec.root, spec.size);
}

// The plan of a group of one: what it gives is what it gets.
inline Plan alone(const Spec& spec) {
  Plan plan;
  if (reduces(spec.collective)) {
    plan.add_stage().steps = {as_final(copy(0, kInput, kOutput))};
  } else if (has_parts(spec.collective)) {
    plan.add_stage().steps = {copy(0, kInput, kOutput)};
  }
  return plan;
}

}  // namespace pycomm
