// Nodes as the algorithms that follow them see them (Spec::node_of).
//
// A *lane* is a part of the vector that passes through one rank of each node, its *carrier* there: all ranks
// of a node drive the network at once, each with the lanes that it carries.
#pragma once

#include <algorithm>
#include <vector>

#include "algorithm/ranks.h"

namespace pycomm {

struct Nodes {
  explicit Nodes(const Spec& spec) {
    for (int rank = 0; rank < spec.size; ++rank) {
      const int node = of(spec, rank);
      if (node >= count()) members.resize(node + 1);
      members[node].push_back(rank);
    }
  }

  static int of(const Spec& spec, int rank) { return spec.node_of.empty() ? rank : spec.node_of[rank]; }

  // The other ranks of this rank's node, in an order in which no two begin with the same.
  static std::vector<int> neighbours(const Spec& spec) {
    std::vector<int> ranks;
    for (int rank : other_ranks(spec))
      if (of(spec, rank) == of(spec, spec.rank)) ranks.push_back(rank);
    return ranks;
  }

  int count() const { return static_cast<int>(members.size()); }
  int size(int node) const { return static_cast<int>(members[node].size()); }
  int carrier(int lane, int node) const { return members[node][lane % size(node)]; }
  int largest() const {
    std::size_t most = 0;
    for (const auto& ranks : members) most = std::max(most, ranks.size());
    return static_cast<int>(most);
  }

  std::vector<std::vector<int>> members;  // in order of rank
};

// How many lanes can be shared out most evenly among the ranks of every node: at most four for each rank of
// the largest, since each cuts the vector further.
inline int even_lanes(const Nodes& nodes) {
  const auto busiest = [&](int lanes) {  // times `lanes`: the share of the busiest rank against an even one
    int most = 0;
    for (int node = 0; node < nodes.count(); ++node)
      most = std::max(most, (lanes + nodes.size(node) - 1) / nodes.size(node) * nodes.size(node));
    return most;
  };
  int best = nodes.largest();
  for (int lanes = best + 1; lanes <= 4 * nodes.largest(); ++lanes)
    if (busiest(lanes) * best < busiest(best) * lanes) best = lanes;
  return best;
}

}  // namespace pycomm
