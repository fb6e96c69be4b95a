// Bruck, Ho, Kipnis, Upfal and Weathersby, "Efficient algorithms for all-to-all communications in multiport
// message-passing systems", 1997: ceil(log2(N)) rounds at doubling distance for any N. Every rank talks to
// that many others only. Best for short vectors.
//
// all_gather: before the round of distance d a rank has the d chunks up to its own, and gets those before
// them. It passes the same way as the ring, so that ranks that chose differently meet, and a mismatch is
// seen. all_to_all: a block that has `offset` ranks to go travels the binary digits of the offset, the lowest
// first; all blocks with one offset move alike.
#include <bit>

#include "algorithm/ranks.h"
#include "algorithm/volume.h"

namespace pycomm {
namespace {

Plan all_gather(const Spec& spec) {
  Plan plan{.chunks = spec.size};
  plan.add_stage().steps = {copy(spec.rank, kInput, kOutput)};
  for (int distance = 1; distance < spec.size; distance *= 2) {
    const int to = wrap(spec.rank + distance, spec.size), from = wrap(spec.rank - distance, spec.size);
    Stage& round = plan.add_stage();
    for (int i = 0; i < distance && i < spec.size - distance; ++i) {
      const Step pass = send(to, wrap(spec.rank - i, spec.size), kOutput);
      round.steps.push_back(distance == 1 ? published(pass) : pass);
      round.steps.push_back(recv(from, wrap(from - i, spec.size), kOutput));
    }
  }
  return plan;
}

// Where blocks of an offset are before the move along `digit`: in turns in one of two slots, since in each
// round a rank passes one such block on while it takes another.
Buffer place_before(int digit, int offset, const Spec& spec) {
  const int moves = std::popcount(static_cast<unsigned>(offset & (digit - 1)));
  return moves == 0 ? kInput : scratch(moves % 2 * spec.size + offset);
}

Buffer place_after(int digit, int offset, const Spec& spec) {
  return 2 * digit > offset ? kOutput : place_before(2 * digit, offset, spec);
}

// The block that a rank holds before the move along `digit`, `offset` being its whole way.
int block_at(int rank, int digit, int offset, int size) {
  const int source = wrap(rank - (offset & (digit - 1)), size);
  return source * size + wrap(source + offset, size);
}

Plan all_to_all(const Spec& spec) {
  Plan plan{.chunks = spec.size * spec.size};
  plan.add_stage().steps = {copy(spec.rank * spec.size + spec.rank, kInput, kOutput)};
  for (int digit = 1; digit < spec.size; digit *= 2) {
    const int to = wrap(spec.rank + digit, spec.size), from = wrap(spec.rank - digit, spec.size);
    Stage& round = plan.add_stage();
    for (int offset = digit; offset < spec.size; ++offset) {
      if ((offset & digit) == 0) continue;
      round.steps.push_back(
          send(to, block_at(spec.rank, digit, offset, spec.size), place_before(digit, offset, spec)));
      round.steps.push_back(
          recv(from, block_at(from, digit, offset, spec.size), place_after(digit, offset, spec)));
    }
  }
  return plan;
}

// A block is sent once for every binary digit of its offset.
double digits_of_offsets(int size) {
  int digits = 0;
  for (int offset = 1; offset < size; ++offset) digits += std::popcount(static_cast<unsigned>(offset));
  return double(digits) / size / size;
}

const Register<Algorithm> kAllGather({.name = "all_gather:bruck",
                                      .summary = "chunks doubled in every round; short vectors",
                                      .plan = all_gather,
                                      .volume = one_pass});
const Register<Algorithm> kAllToAll({.name = "all_to_all:bruck",
                                     .summary = "blocks travel the digits of their distance; short blocks",
                                     .plan = all_to_all,
                                     .volume = digits_of_offsets,
                                     .uneven = false});

}  // namespace
}  // namespace pycomm
