// How ranks may lie on nodes (Spec::node_of).
#pragma once

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "plan/plan.h"

namespace pycomm {

using NodeOf = std::vector<int>;

// Nodes of these sizes, one after the other.
inline NodeOf node_by_node(const std::vector<int>& sizes) {
  NodeOf nodes;
  for (std::size_t node = 0; node < sizes.size(); ++node)
    nodes.insert(nodes.end(), sizes[node], static_cast<int>(node));
  return numbered(nodes);
}

// Nodes of these sizes, a rank to each in turn.
inline NodeOf dealt(std::vector<int> sizes) {
  NodeOf nodes;
  for (bool more = true; std::exchange(more, false);)
    for (std::size_t node = 0; node < sizes.size(); ++node)
      if (sizes[node]-- > 0) {
        nodes.push_back(static_cast<int>(node));
        more = true;
      }
  return numbered(nodes);
}

inline NodeOf any_layout(std::mt19937& random, int size) {
  const int count = 1 + static_cast<int>(random() % size);
  std::vector<int> nodes(size);
  for (int& node : nodes) node = static_cast<int>(random() % count);
  return numbered(nodes);
}

// Sizes of `least` to `most` nodes of 1 to 4 ranks each.
inline std::vector<std::vector<int>> node_sizes(int least, int most) {
  std::vector<std::vector<int>> all, longest = {{}};
  for (int count = 1; count <= most; ++count) {
    std::vector<std::vector<int>> longer;
    for (const auto& sizes : longest)
      for (int ranks = 1; ranks <= 4; ++ranks) {
        longer.push_back(sizes);
        longer.back().push_back(ranks);
      }
    longest = longer;
    if (count >= least) all.insert(all.end(), longest.begin(), longest.end());
  }
  return all;
}

// Algorithms whose plans follow nodes.
inline std::vector<const Algorithm*> followers() {
  std::vector<const Algorithm*> found;
  for (const Algorithm* algorithm : Registry<Algorithm>::instance().all())
    if (algorithm->volume_of_node) found.push_back(algorithm);
  return found;
}

}  // namespace pycomm
