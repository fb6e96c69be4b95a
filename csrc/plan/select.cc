#include "plan/select.h"

namespace pycomm {
namespace {

// Below this a message costs its latency, not its bytes.
constexpr std::int64_t kLatencyBytes = 16 << 10;

// direct sums in f32 and rounds once, at the ring's bytes; beyond this many peers its messages get too small.
constexpr int kDirectRanks = 16;

}  // namespace

std::string select_algorithm(const Choice& choice) {
  const bool small = choice.bytes <= kLatencyBytes;
  switch (choice.collective) {
    case Collective::all_reduce:
      if (choice.mapped && !choice.rounds) return "mapped";
      if (choice.rounds && choice.size <= kDirectRanks) return "direct";
      return small ? "recursive_doubling" : "ring";
    case Collective::reduce_scatter:
      if (choice.mapped && !choice.rounds) return "mapped";
      return (choice.rounds || small) && choice.size <= kDirectRanks ? "direct" : "ring";
    case Collective::all_gather:
      if (choice.mapped) return "mapped";
      return small && choice.size <= kDirectRanks ? "direct" : "ring";
    case Collective::broadcast:
      return choice.mapped ? "mapped" : "binomial";
    case Collective::barrier:
      return "dissemination";
    case Collective::send:
    case Collective::recv:
      break;
  }
  return "direct";
}

}  // namespace pycomm
