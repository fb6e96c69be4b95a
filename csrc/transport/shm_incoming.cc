#include "transport/shm_incoming.h"

#include <algorithm>
#include <new>

#include "core/error.h"

namespace pycomm::shm {

void Incoming::attach(const Arrival& arrival) {
  PYCOMM_DCHECK(!attached() && arrival.line % 64 == 0 &&
                arrival.line <= arrival.heap->bytes() - sizeof(Line));
  heap_ = arrival.heap;
  line_.emplace(*std::launder(reinterpret_cast<Line*>(heap_->data() + arrival.line)));
}

void Incoming::post(Receive& receive) {
  for (auto found = unexpected_.begin(); found != unexpected_.end();) {
    if (!(found->tag == receive.tag)) {
      ++found;
      continue;
    }
    const Unexpected message = std::move(*found);
    found = unexpected_.erase(found);
    if (message.place && !claim(message.slot)) continue;  // it was withdrawn
    deliver(receive, message.place ? at(*message.place) : std::span(message.kept), message.slot);
    return;
  }
  receives_.push_back(&receive);
}

void Incoming::read_for(const Receive& receive) {
  if (!line_) return;
  while (receive.state == Receive::State::waiting) {
    const auto message = line_->messages.peek();
    if (!message) return;
    take(*message);
    line_->messages.pop(*message);
  }
}

void Incoming::take(const Message& message) {
  std::optional<Place> place;
  if (message.kind == Kind::placed) std::memcpy(&place.emplace(), message.data.data(), sizeof(Place));
  const auto found = std::find_if(receives_.begin(), receives_.end(),
                                  [&](const Receive* receive) { return receive->tag == message.tag; });
  if (found == receives_.end()) {
    Unexpected& kept = unexpected_.emplace_back(Unexpected{message.tag, message.slot, {}, place});
    if (!place) kept.kept.assign(message.data.begin(), message.data.end());
    return;
  }
  if (place && !claim(message.slot)) return;
  Receive& receive = **found;
  receives_.erase(found);
  deliver(receive, place ? at(*place) : message.data, message.slot);
}

// False: the sender has withdrawn the message, and nothing is read.
bool Incoming::claim(std::uint32_t slot) {
  std::atomic<Slot>& state = line_->line.slots[slot];
  Slot seen = Slot::offered;
  if (state.compare_exchange_strong(seen, Slot::taken, std::memory_order_relaxed)) return true;
  state.store(Slot::done, std::memory_order_release);
  return false;
}

void Incoming::deliver(Receive& receive, std::span<const std::byte> bytes, std::uint32_t slot) {
  const bool fits = bytes.size() <= receive.into.size();
  if (fits && !bytes.empty()) std::memcpy(receive.into.data(), bytes.data(), bytes.size());
  receive.arrived = bytes.size();
  receive.state = fits ? Receive::State::done : Receive::State::too_large;
  if (slot != kNoSlot) line_->line.slots[slot].store(Slot::done, std::memory_order_release);
}

std::span<const std::byte> Incoming::at(const Place& place) const {
  PYCOMM_DCHECK(place.offset <= heap_->bytes() && place.bytes <= heap_->bytes() - place.offset);
  return {heap_->data() + place.offset, place.bytes};
}

bool Incoming::read_frame(std::vector<std::byte>* bytes) {
  if (!line_) return false;
  const auto message = line_->control.peek();
  if (!message) return false;
  bytes->assign(message->data.begin(), message->data.end());
  line_->control.pop(*message);
  return true;
}

}  // namespace pycomm::shm
