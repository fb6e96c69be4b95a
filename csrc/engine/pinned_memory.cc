#include "engine/pinned_memory.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

namespace pycomm {
namespace {

constexpr std::size_t kPage = 4096;

std::shared_ptr<std::byte> plain_memory(std::size_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  return {static_cast<std::byte*>(::operator new(bytes, kAlignment)),
          [](std::byte* data) { ::operator delete(data, kAlignment); }};
}

}  // namespace

PinnedMemory::Block PinnedMemory::take(Device& device, int card, std::size_t bytes) {
  const std::size_t size = std::bit_ceil(std::max(bytes, kPage));
  const auto fits = [&](const Locked& locked) { return locked.device == &device && locked.bytes == size; };
  const auto found = std::find_if(free_.rbegin(), free_.rend(), fits);
  if (found != free_.rend()) {
    Locked locked = std::move(*found);
    free_.erase(std::next(found).base());
    return Block(locked.data, GiveBack{this, locked});
  }
  // No two blocks share a page: locking is by pages.
  auto owner = peers_ ? peers_->allocate(size + kPage) : plain_memory(size + kPage);
  const auto address = reinterpret_cast<std::uintptr_t>(owner.get());
  std::byte* const data = owner.get() + (-address % kPage);
  device.pin(card, data, size);
  return Block(data, GiveBack{this, {&device, card, size, data, std::move(owner)}});
}

PinnedMemory::~PinnedMemory() {
  for (const Locked& locked : free_) locked.device->unpin(locked.card, locked.data);
}

}  // namespace pycomm
