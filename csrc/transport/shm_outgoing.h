// What one rank sends to one peer: puts messages on the line as long as there is room and keeps the rest in
// order.
//
// Up to 4 kB a message is copied into the ring, and done. A longer one lies in the heap until the peer has
// copied it from there: where the caller has it, or in a block of ours when the caller's memory is not in the
// heap. Then a receiver that is late holds up its sender; for short ones every 16th waits for its receive, so
// that what lies unexpected at a receiver is bounded by the executor's windows.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include "transport/shm_heap.h"
#include "transport/shm_ring.h"

namespace pycomm::shm {

struct Send {
  enum class State { queued, published, done };
  State state = State::queued;
  std::span<const std::byte> bytes;
  Tag tag;
  std::uint32_t slot = kNoSlot;
  std::byte* block = nullptr;  // of ours, with a copy
};

class Outgoing {
 public:
  Outgoing(Heap& heap, BlockCache& blocks, int peer);

  std::uint64_t offset() const { return heap_.offset_of(reinterpret_cast<const std::byte*>(&line_)); }

  // The object must stay until it is done or cancelled.
  void post(Send& send);
  bool done(Send& send);
  // As Transport::cancel() says.
  bool cancel(Send& send);

  void post_frame(std::span<const std::byte> bytes);  // throws TransportError when too many are unread
  void flush_frames();

 private:
  void flush();
  bool publish(Send& send);
  bool publish_copied(Send& send);
  bool publish_placed(Send& send);
  std::byte* place(Send& send);
  std::uint32_t take_slot();
  void give_back(Send& send);
  void collect_orphans();

  Heap& heap_;
  BlockCache& blocks_;
  const int peer_;
  Line& line_;
  RingWriter<kMessageCells> messages_;
  RingWriter<kControlCells> control_;
  std::deque<Send*> queue_;
  std::deque<std::vector<std::byte>> frames_;
  std::vector<std::uint32_t> free_slots_;
  std::vector<Send> orphans_;  // cancelled; the peer has not let go
  unsigned copied_ = 0;
};

}  // namespace pycomm::shm
