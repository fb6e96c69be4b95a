// What one rank receives from one peer: reads the peer's line and gives each message to the eldest receive
// with its tag. What nobody waits for yet stays where it lies if that is the peer's heap, and is kept here if
// it came in the ring, which must not stand still: other tags are behind it.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "transport/shm_connect.h"
#include "transport/shm_ring.h"

namespace pycomm::shm {

struct Receive {
  enum class State { waiting, done, too_large, told };
  State state = State::waiting;
  std::span<std::byte> into;
  Tag tag;
  std::size_t arrived = 0;  // bytes of the message, once done or too large
};

class Incoming {
 public:
  bool attached() const { return line_.has_value(); }
  void attach(const Arrival& arrival);
  const Mapping& heap() const { return *heap_; }

  // The object must stay until it is done or cancelled.
  void post(Receive& receive);
  void cancel(Receive& receive) { std::erase(receives_, &receive); }
  // Reads what has come, as far as this one's message: what is behind it is left to later receives, which it
  // would otherwise be kept for at the cost of a copy.
  void read_for(const Receive& receive);
  bool read_frame(std::vector<std::byte>* bytes);

 private:
  struct Reader {
    explicit Reader(Line& line) : line(line), messages(line.messages), control(line.control) {}
    Line& line;
    RingReader<kMessageCells> messages;
    RingReader<kControlCells> control;
  };
  struct Unexpected {
    Tag tag;
    std::uint32_t slot = kNoSlot;
    std::vector<std::byte> kept;
    std::optional<Place> place;
  };

  void take(const Message& message);
  void deliver(Receive& receive, std::span<const std::byte> bytes, std::uint32_t slot);
  bool claim(std::uint32_t slot);
  std::span<const std::byte> at(const Place& place) const;

  std::shared_ptr<Mapping> heap_;
  std::optional<Reader> line_;
  std::deque<Receive*> receives_;  // in order of posting; few
  std::deque<Unexpected> unexpected_;
};

}  // namespace pycomm::shm
