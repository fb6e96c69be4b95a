// What a plan is asked for.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace pycomm {

enum class Collective : std::uint8_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  reduce,
  gather,
  scatter,
  all_to_all,
  barrier,
  send,
  recv
};
inline constexpr int kCollectiveCount = 11;
inline constexpr std::array<std::string_view, kCollectiveCount> kCollectiveNames = {
    "all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "gather",
    "scatter",    "all_to_all",     "barrier",    "send",      "recv"};

constexpr std::string_view name_of(Collective c) {
  return kCollectiveNames[static_cast<int>(c)];
}
constexpr bool reduces(Collective c) {
  return c == Collective::all_reduce || c == Collective::reduce_scatter || c == Collective::reduce;
}
// One rank alone gives, or one alone gets.
constexpr bool has_root(Collective c) {
  return c == Collective::broadcast || c == Collective::reduce || c == Collective::gather ||
         c == Collective::scatter;
}
// The plan cuts the vector as the call does: in a part per rank (or per pair of ranks, for all_to_all), whose
// sizes the caller may choose.
constexpr bool has_parts(Collective c) {
  return c == Collective::reduce_scatter || c == Collective::all_gather || c == Collective::gather ||
         c == Collective::scatter || c == Collective::all_to_all;
}

struct Spec {
  Collective collective = Collective::all_reduce;
  int rank = 0;
  int size = 1;
  int root = 0;  // see has_root(); the peer of a send or recv
  // The node of each rank: ranks of one node address each other's memory. Nodes are numbered from 0 in order
  // of their lowest ranks. Empty: no two ranks share one.
  std::vector<int> node_of = {};
};

}  // namespace pycomm
