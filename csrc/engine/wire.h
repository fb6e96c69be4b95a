// The header that precedes each operation's first message to a peer. It holds the call itself, so that a rank
// whose call differs can name both, and it is checked before a byte reaches a user's buffer.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "plan/spec.h"

namespace pycomm {

inline constexpr std::uint8_t kWireVersion = 4;

// Header::parts of a call whose parts have chosen sizes, before it is made one for a channel.
inline constexpr std::uint32_t kChosenParts = 1;

inline constexpr std::uint8_t kOwnAlgorithm = 255;

// Fowler, Noll and Vo's hash, 32 bits.
std::uint32_t digest_of(const void* data, std::size_t bytes);

struct Header {
  std::uint8_t version = kWireVersion;
  std::uint8_t collective = 0;
  std::uint8_t dtype = 0;
  std::uint8_t op : 4 = 0;
  std::uint8_t order : 3 = 0;
  std::uint8_t in_pieces : 1 = 0;  // as calls on a device's memory travel (engine/pieces.h)
  std::uint32_t context = 0;       // communicator
  std::uint32_t sequence = 0;      // operation of it
  std::uint16_t root = 0;
  std::uint8_t codec = 0;      // index in the registry
  std::uint8_t algorithm = 0;  // index in the registry; kOwnAlgorithm
  std::uint64_t count =
      0;  // elements of the whole vector; with chosen parts, of all that this channel carries
  float scale = 1.0f;
  std::uint32_t history = 0;  // digest of the communicator's earlier collectives
  std::uint32_t parts = 0;    // digest of the sizes of the parts that this channel carries; 0: equal parts
  std::uint32_t plans = 0;    // digest of the plans, where the algorithm is the caller's own

  bool operator==(const Header& other) const { return std::memcmp(this, &other, sizeof(Header)) == 0; }

  // The digest that the next header carries. A root that only sends hears from nobody that it was the wrong
  // root: the next operation tells.
  std::uint32_t next_history() const;

  // Of an operation with chosen parts, the header for a channel that carries parts of these sizes, in order:
  // a rank knows only the sizes of what passes through it.
  void describe_parts(const std::vector<std::int64_t>& counts);
};
static_assert(sizeof(Header) == 40);
static_assert(std::endian::native == std::endian::little,
              "headers and elements travel as little-endian bytes");

// Why these two are not the two ends of one operation.
std::string describe_mismatch(int their_rank, const Header& theirs, int our_rank, const Header& ours);

// "all_reduce(f32 × 1000, op sum, order any, codec none, algorithm ring, root 0, scale 1), operation 7 of
// communicator 0"
std::string describe(const Header& header);

}  // namespace pycomm
