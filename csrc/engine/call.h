// A collective as the user called it, and whether that can be served: everything that can be said before a
// byte moves.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codec/codec.h"
#include "core/device.h"
#include "core/view.h"
#include "engine/layout.h"
#include "engine/own_algorithm.h"
#include "kernels/kernels.h"

namespace pycomm {

struct Call {
  Collective collective = Collective::barrier;
  View input;           // of the call's dtype; empty where this rank gives nothing
  View output;          // and where it gets nothing
  Placement placement;  // of both
  ReduceOp op = ReduceOp::sum;
  int root = 0;  // or the peer of a send or recv
  double scale = 1.0;
  Order order = Order::any;                           // in which contributions are added
  std::string codec;                                  // empty: none
  std::string algorithm;                              // empty: chosen by the communicator
  std::shared_ptr<const OwnAlgorithm> own_algorithm;  // or null; then `algorithm` is not looked at
  // Sizes of the parts (has_parts in plan/spec.h); empty: equal ones. By rank, the same on all ranks; for
  // all_to_all what this rank gives to each, and in `received` what it gets from each.
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> received;
  double timeout_s = 0;  // 0: as the settings say
  bool soon = true;      // false: the caller waits right away
  int bucket = -1;       // its number, for traces; none
  std::shared_ptr<void> keepalive;

  bool operator==(const Call&) const = default;
};

constexpr bool is_pair(Collective collective) {
  return collective == Collective::send || collective == Collective::recv;
}

// What a call amounts to on one rank.
struct CheckedCall {
  const Codec& codec;
  std::int64_t
      count;      // elements of the whole vector; of all_to_all, what each rank gives in equal parts, or 0
  bool in_place;  // input and output are the same memory

  Layout layout(const Call& call, const Spec& spec, int chunks) const;
};

// Throws InvalidArgument where so many ranks cannot add in that order, or nothing is added.
void check_order(Collective collective, Order order, int size);

// Throws InvalidArgument, saying what was expected and what came.
CheckedCall check_call(const Call& call, int rank, int size);

}  // namespace pycomm
