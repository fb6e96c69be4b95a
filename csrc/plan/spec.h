// What a plan is asked for.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace pycomm {

enum class Collective : std::uint8_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  barrier,
  send,
  recv
};
inline constexpr int kCollectiveCount = 7;
inline constexpr std::array<std::string_view, kCollectiveCount> kCollectiveNames = {
    "all_reduce", "reduce_scatter", "all_gather", "broadcast", "barrier", "send", "recv"};

constexpr std::string_view name_of(Collective c) {
  return kCollectiveNames[static_cast<int>(c)];
}
constexpr bool reduces(Collective c) {
  return c == Collective::all_reduce || c == Collective::reduce_scatter;
}

struct Spec {
  Collective collective = Collective::all_reduce;
  int rank = 0;
  int size = 1;
  int root = 0;  // of a broadcast; the peer of a send or recv
};

}  // namespace pycomm
