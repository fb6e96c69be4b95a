// One direction of the announced messages between two ranks: each is cut into segments, which go in order, so
// many at a time as the pair's window says.
//
// An Owner is a message on its way, with context(), sequence, segment_bytes, a Cutter `cutter` over its
// memory, bytes_left and `broken`. Driver only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "core/error.h"
#include "engine/group.h"
#include "transport/transport.h"

namespace pycomm {

// Walks over spans of memory, a segment at a time.
template <class Span>
struct Cutter {
  std::vector<Span> parts;
  std::size_t part = 0;
  std::size_t offset = 0;

  Span next(std::size_t segment_bytes) {  // empty at the end
    while (part < parts.size() && offset == parts[part].size()) {
      ++part;
      offset = 0;
    }
    if (part == parts.size()) return {};
    const Span segment = parts[part].subspan(offset, std::min(segment_bytes, parts[part].size() - offset));
    offset += segment.size();
    return segment;
  }
};

// A message given up while a transport uses its memory.
struct PinnedMail {
  Transport* transport = nullptr;
  Ticket ticket = 0;
  std::shared_ptr<void> owner;
};

template <class Owner>
class MailStream {
 public:
  void push(const std::shared_ptr<Owner>& owner) { queue_.push_back(owner); }
  bool empty() const { return queue_.empty(); }
  bool holds(const Owner& owner) const {
    return std::any_of(queue_.begin(), queue_.end(), [&](auto& held) { return held.get() == &owner; });
  }
  std::deque<std::shared_ptr<Owner>> all() const { return queue_; }

  // Posts segments by `post(tag, segment)` while there is room. A message whose further parts `known(owner)`
  // denies holds up those behind it. After a failure its message is broken, `broken(owner, what)` hears why,
  // and it is to be removed; nothing more is posted for it.
  template <class Post, class Known, class Broken>
  bool post(std::size_t window, Post post, Known known, Broken broken) {
    bool moved = false;
    for (const auto& owner : queue_) {
      if (owner->broken) continue;
      while (flights_.size() < window) {
        const auto segment = owner->cutter.next(owner->segment_bytes);
        if (segment.empty()) break;
        moved = true;
        try {
          const Tag tag = tag_of(owner->context(), Plane::mail, owner->sequence);
          flights_.push_back({post(tag, segment), segment.size(), owner});
        } catch (const Error& error) {
          owner->broken = true;
          broken(*owner, error.what());
          return moved;
        }
      }
      if (flights_.size() >= window || !known(*owner)) return moved;
    }
    return moved;
  }

  // Looks at what is in flight; `landed(owner)` hears of each segment, after bytes_left has shrunk. A message
  // of which nothing is left leaves the stream.
  template <class Landed, class Broken>
  bool poll(Transport& transport, Landed landed, Broken broken) {
    bool moved = false;
    for (std::size_t i = 0; i < flights_.size();) {
      const Flight flight = flights_[i];
      try {
        const auto bytes = transport.poll(flight.ticket);
        if (!bytes) {
          ++i;
          continue;
        }
        moved = true;
        flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(i));
        if (*bytes != flight.bytes)
          throw TransportError(text(*bytes, " bytes of a segment of ", flight.bytes));
        flight.owner->bytes_left -= flight.bytes;
        landed(*flight.owner);
        if (flight.owner->bytes_left == 0) std::erase(queue_, flight.owner);
      } catch (const std::exception& error) {
        flight.owner->broken = true;
        broken(*flight.owner, error.what());
        return true;
      }
    }
    return moved;
  }

  // Gives a message up. What a transport may still use goes to `pinned`.
  void remove(const std::shared_ptr<Owner>& owner, Transport& transport, std::vector<PinnedMail>& pinned) {
    for (const Flight& flight : flights_)
      if (flight.owner == owner) pinned.push_back({&transport, flight.ticket, owner});
    std::erase_if(flights_, [&](const Flight& flight) { return flight.owner == owner; });
    std::erase(queue_, owner);
  }

 private:
  struct Flight {
    Ticket ticket = 0;
    std::size_t bytes = 0;
    std::shared_ptr<Owner> owner;
  };
  std::deque<std::shared_ptr<Owner>> queue_;
  std::deque<Flight> flights_;
};

}  // namespace pycomm
