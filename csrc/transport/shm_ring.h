// The way from one rank to another through shared memory: a ring of cells for messages, a second one for
// control frames, and slots by which the receiver answers. It lies in the sender's heap.
//
// A message takes cells that follow each other, its first bytes beside the head: a short message and its flag
// are one cache line. One rank writes a ring and one reads it. Who orders what:
//
//   Cell::flag   written last, with release; read first, with acquire: the reader sees the whole message, and
//   all
//                that the writer did before it, its stores to peers' memory included. Before a message is
//                published the flag behind it is cleared (relaxed: the reader looks there only after this
//                message, whose release covers it), for those cells may hold any bytes of an earlier lap.
//   Ring::read   how far the reader is, stored with release once it has copied a message out; the writer
//                acquires it before it writes those cells again.
//   Slot         of a message whose memory stays in use: `offered` by the sender before it publishes. The
//   reader
//                takes it, the sender may revoke it: one compare-and-exchange each, of which one wins;
//                relaxed, because it hands over no data, only the right to read it. `done` is stored with
//                release after the last read; the sender acquires it and may rewrite the memory.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "transport/transport.h"

namespace pycomm::shm {

enum class Kind : std::uint8_t {
  none,    // nothing here yet
  skip,    // go on at the start of the ring
  copied,  // the message is in the ring
  placed,  // the ring has its Place
};

// Where the bytes of a placed message lie in the sender's heap.
struct Place {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

inline constexpr std::uint32_t kNoSlot = 0xffff;

struct Cell {
  static constexpr std::size_t kBytes = 64;
  std::atomic<std::uint32_t> flag{0};  // kind, and slot << 8
  std::uint32_t bytes = 0;             // that follow, in this cell and the next ones
  Tag tag;
  std::array<std::byte, kBytes - 16> data;
};
static_assert(sizeof(Cell) == Cell::kBytes && std::atomic<std::uint32_t>::is_always_lock_free);

constexpr std::uint64_t cells_for(std::size_t bytes) {
  constexpr std::size_t first = sizeof(Cell::data);
  return bytes <= first ? 1 : 1 + (bytes - first + Cell::kBytes - 1) / Cell::kBytes;
}

// What both sides see.
template <std::size_t kCells>
struct Ring {
  std::array<Cell, kCells> cells;
  alignas(64) std::atomic<std::uint64_t> read{0};  // cells, counted from the beginning of time
};

// The bytes of the message that begins there: they run on through the cells behind it.
template <std::size_t kCells>
std::byte* data_of(Ring<kCells>& ring, std::uint64_t position) {
  return reinterpret_cast<std::byte*>(&ring) + (position % kCells) * Cell::kBytes + offsetof(Cell, data);
}

struct Message {
  Kind kind = Kind::none;
  std::uint32_t slot = kNoSlot;
  Tag tag;
  std::span<const std::byte> data;  // in the ring, until the reader goes on
};

template <std::size_t kCells>
class RingWriter {
 public:
  explicit RingWriter(Ring<kCells>& ring) : ring_(ring) {}

  // False: there is no room now. Messages of up to an eighth of the ring find some once all have been read.
  bool write(Kind kind, std::uint32_t slot, Tag tag, std::span<const std::byte> data) {
    const std::uint64_t needed = cells_for(data.size());
    const std::uint64_t left = kCells - next_ % kCells;
    const bool wraps = needed > left;
    if (!has_room((wraps ? left : 0) + needed + 1)) return false;
    if (wraps) {
      ring_.cells[0].flag.store(0, std::memory_order_relaxed);
      publish(ring_.cells[next_ % kCells], Kind::skip, 0);
      next_ += left;
    }
    Cell& cell = ring_.cells[next_ % kCells];
    ring_.cells[(next_ + needed) % kCells].flag.store(0, std::memory_order_relaxed);
    cell.bytes = static_cast<std::uint32_t>(data.size());
    cell.tag = tag;
    if (!data.empty()) std::memcpy(data_of(ring_, next_), data.data(), data.size());
    publish(cell, kind, slot);
    next_ += needed;
    return true;
  }

 private:
  static void publish(Cell& cell, Kind kind, std::uint32_t slot) {
    cell.flag.store(static_cast<std::uint32_t>(kind) | slot << 8, std::memory_order_release);
  }

  // One cell is always free: the cleared flag at which the reader waits.
  bool has_room(std::uint64_t cells) {
    if (next_ + cells - read_ <= kCells) return true;
    read_ = ring_.read.load(std::memory_order_acquire);
    return next_ + cells - read_ <= kCells;
  }

  Ring<kCells>& ring_;
  std::uint64_t next_ = 0;
  std::uint64_t read_ = 0;  // what we last saw
};

template <std::size_t kCells>
class RingReader {
 public:
  explicit RingReader(Ring<kCells>& ring) : ring_(ring) {}

  // The next message, which must be finished with before the one after it.
  std::optional<Message> peek() {
    for (;;) {
      Cell& cell = ring_.cells[next_ % kCells];
      const std::uint32_t flag = cell.flag.load(std::memory_order_acquire);
      const auto kind = static_cast<Kind>(flag & 0xff);
      if (kind == Kind::none) return std::nullopt;
      if (kind != Kind::skip) return Message{kind, flag >> 8, cell.tag, {data_of(ring_, next_), cell.bytes}};
      go_on(kCells - next_ % kCells);
    }
  }
  void pop(const Message& message) { go_on(cells_for(message.data.size())); }

 private:
  void go_on(std::uint64_t cells) {
    next_ += cells;
    ring_.read.store(next_, std::memory_order_release);
  }

  Ring<kCells>& ring_;
  std::uint64_t next_ = 0;
};

enum class Slot : std::uint32_t { idle, offered, taken, revoked, done };

// Messages this long are copied into the ring, at most; an eighth of it.
inline constexpr std::size_t kCopiedBytes = 4096;
inline constexpr std::size_t kMessageCells = 1024;
inline constexpr std::size_t kControlCells = 128;
inline constexpr std::uint32_t kSlots = 256;

struct Line {
  Ring<kMessageCells> messages;
  Ring<kControlCells> control;
  std::array<std::atomic<Slot>, kSlots> slots{};
};

}  // namespace pycomm::shm
