#include "transport/shm_outgoing.h"

#include <new>

#include "core/error.h"

namespace pycomm::shm {
namespace {

constexpr unsigned kAnsweredEvery = 16;
// Frames that wait here, beside those in the ring, before posting another one is an error.
constexpr std::size_t kMaxFrames = 4096;

Line& new_line(Heap& heap, int peer) {
  std::byte* const memory = heap.allocate(sizeof(Line));
  if (!memory)
    throw TransportError(text("the shared heap of ", heap.mapping()->bytes() >> 20,
                              " MB has no room for the line to rank ", peer, ": set PYCOMM_HEAP_MB higher"));
  return *new (memory) Line;
}

}  // namespace

// The line is never freed: the peer may read it until it has gone.
Outgoing::Outgoing(Heap& heap, BlockCache& blocks, int peer)
    : heap_(heap),
      blocks_(blocks),
      peer_(peer),
      line_(new_line(heap, peer)),
      messages_(line_.messages),
      control_(line_.control) {
  for (std::uint32_t slot = kSlots; slot-- > 0;) free_slots_.push_back(slot);
}

void Outgoing::post(Send& send) {
  flush();
  if (!queue_.empty() || !publish(send)) queue_.push_back(&send);
}

void Outgoing::flush() {
  while (!queue_.empty() && publish(*queue_.front())) queue_.pop_front();
}

bool Outgoing::publish(Send& send) {
  return send.bytes.size() <= kCopiedBytes ? publish_copied(send) : publish_placed(send);
}

bool Outgoing::publish_copied(Send& send) {
  const bool answered = (copied_ + 1) % kAnsweredEvery == 0;
  if (answered && send.slot == kNoSlot) send.slot = take_slot();
  if (answered && send.slot == kNoSlot) return false;
  if (!messages_.write(Kind::copied, send.slot, send.tag, send.bytes)) return false;
  ++copied_;
  send.state = answered ? Send::State::published : Send::State::done;
  return true;
}

bool Outgoing::publish_placed(Send& send) {
  if (send.slot == kNoSlot) send.slot = take_slot();
  if (send.slot == kNoSlot) return false;
  const std::byte* const memory = heap_.mapping()->contains(send.bytes) ? send.bytes.data() : place(send);
  if (!memory) return false;
  const Place place{heap_.offset_of(memory), send.bytes.size()};
  if (!messages_.write(Kind::placed, send.slot, send.tag, std::as_bytes(std::span(&place, 1)))) return false;
  send.state = Send::State::published;
  return true;
}

std::byte* Outgoing::place(Send& send) {
  if (send.block) return send.block;
  send.block = blocks_.take(send.bytes.size());
  if (send.block)
    std::memcpy(send.block, send.bytes.data(), send.bytes.size());
  else if (blocks_.idle())  // no room ever
    throw TransportError(text("a message of ", send.bytes.size(), " bytes to rank ", peer_,
                              " does not fit into the shared heap of ", heap_.mapping()->bytes() >> 20,
                              " MB: set PYCOMM_HEAP_MB higher, or PYCOMM_SEGMENT_BYTES lower"));
  return send.block;
}

std::uint32_t Outgoing::take_slot() {
  if (!orphans_.empty()) collect_orphans();
  if (free_slots_.empty()) return kNoSlot;
  const std::uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  // Relaxed: what is published next shows it to the peer.
  line_.slots[slot].store(Slot::offered, std::memory_order_relaxed);
  return slot;
}

bool Outgoing::done(Send& send) {
  if (send.state == Send::State::queued) flush();
  if (send.state != Send::State::published) return send.state == Send::State::done;
  if (line_.slots[send.slot].load(std::memory_order_acquire) != Slot::done) return false;
  give_back(send);
  send.state = Send::State::done;
  return true;
}

void Outgoing::give_back(Send& send) {
  if (send.slot != kNoSlot) free_slots_.push_back(send.slot);
  if (send.block) blocks_.give_back(send.block, send.bytes.size());
  send.slot = kNoSlot;
  send.block = nullptr;
}

bool Outgoing::cancel(Send& send) {
  if (send.state == Send::State::queued) {
    std::erase(queue_, &send);
    give_back(send);
    return true;
  }
  if (done(send)) return true;
  // The caller's memory is read no more when it was never to be read, or when the peer has not begun.
  bool ours = send.block || send.bytes.size() <= kCopiedBytes;
  Slot seen = Slot::offered;
  if (!ours)
    ours = line_.slots[send.slot].compare_exchange_strong(seen, Slot::revoked, std::memory_order_relaxed);
  if (ours) orphans_.push_back(send);
  return ours;
}

void Outgoing::collect_orphans() {
  std::erase_if(orphans_, [&](Send& send) {
    if (line_.slots[send.slot].load(std::memory_order_acquire) != Slot::done) return false;
    give_back(send);
    return true;
  });
}

void Outgoing::post_frame(std::span<const std::byte> bytes) {
  flush_frames();
  if (frames_.empty() && control_.write(Kind::copied, kNoSlot, {}, bytes)) return;
  if (frames_.size() >= kMaxFrames)
    throw TransportError(text("rank ", peer_, " has left more than ", kMaxFrames, " control frames unread"));
  frames_.emplace_back(bytes.begin(), bytes.end());
}

void Outgoing::flush_frames() {
  while (!frames_.empty() && control_.write(Kind::copied, kNoSlot, {}, frames_.front())) frames_.pop_front();
}

}  // namespace pycomm::shm
