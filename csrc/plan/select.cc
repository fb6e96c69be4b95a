#include "plan/select.h"

namespace pycomm {
namespace {

// Below this a message costs its latency, not its bytes.
constexpr std::int64_t kLatencyBytes = 16 << 10;

// direct sums in f32 and rounds once, at the ring's bytes; beyond this many peers its messages get too small.
constexpr int kDirectRanks = 16;

// One vector per rank lands at the root of a direct reduce, which is for short ones.
std::string select_reduce(const Choice& choice, bool small) {
  if (choice.mapped && !choice.rounds) return "mapped";
  if (choice.rounds && choice.size <= kDirectRanks) return small ? "direct" : "scatter_gather";
  return small ? "binomial" : "ring";
}

// Where several nodes have more than one rank between them: what travels between nodes costs, and is rounded.
std::string select_hierarchical(const Choice& choice, bool small) {
  return small || choice.rounds ? "hierarchical_direct" : "hierarchical";
}

}  // namespace

std::string select_algorithm(const Choice& choice) {
  const bool small = choice.bytes <= kLatencyBytes, few = choice.size <= kDirectRanks;
  const bool hierarchical = choice.nodes > 1 && choice.nodes < choice.size;
  switch (choice.collective) {
    case Collective::all_reduce:
      if (hierarchical) return select_hierarchical(choice, small);
      if (choice.mapped && !choice.rounds) return "mapped";
      if (choice.rounds && few) return "direct";
      return small ? "recursive_doubling" : "ring";
    case Collective::reduce_scatter:
      if (hierarchical) return select_hierarchical(choice, small);
      if (choice.mapped && !choice.rounds) return "mapped";
      return (choice.rounds || small) && few ? "direct" : "ring";
    case Collective::all_gather:
      if (hierarchical) return select_hierarchical(choice, small);
      if (choice.mapped) return "mapped";
      if (!small) return "ring";
      return few ? "direct" : "bruck";
    case Collective::broadcast:
      if (hierarchical && !small) return "hierarchical";
      return choice.mapped ? "mapped" : "binomial";
    case Collective::reduce:
      if (hierarchical && !small && !choice.rounds) return "hierarchical";
      return select_reduce(choice, small);
    case Collective::gather:
    case Collective::scatter:
      if (choice.mapped) return "mapped";
      return small && !few ? "binomial" : "direct";
    case Collective::all_to_all:
      if (choice.mapped && !choice.uneven) return "mapped";
      return small && !few && !choice.uneven ? "bruck" : "direct";
    case Collective::barrier:
      return "dissemination";
    case Collective::send:
    case Collective::recv:
      break;
  }
  return "direct";
}

}  // namespace pycomm
