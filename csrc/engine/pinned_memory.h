// Host memory whose pages are locked, so that a device copies to and from it beside the processor. Locking
// costs as much as allocating, so blocks come back to a cache. It is memory that peers can address, where
// there is such: what lies there need not be copied once more to be shared. Used by the driver only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/device.h"
#include "transport/transport.h"

namespace pycomm {

class PinnedMemory {
 public:
  // Null where no peer's memory can be addressed; take() alone uses it.
  explicit PinnedMemory(PeerMemory* peers) : peers_(peers) {}
  // All blocks must have come back.
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

 private:
  struct Locked {
    Device* device = nullptr;
    int card = 0;
    std::size_t bytes = 0;
    std::byte* data = nullptr;
    std::shared_ptr<std::byte> owner;
  };
  struct GiveBack {
    PinnedMemory* to = nullptr;
    Locked locked;
    void operator()(std::byte*) const { to->free_.push_back(locked); }
  };

 public:
  using Block = std::unique_ptr<std::byte, GiveBack>;
  // At least `bytes` long, on a page of its own, uninitialised. Throws TransportError when there is no room,
  // or no more of it may be locked.
  Block take(Device& device, int card, std::size_t bytes);

 private:
  PeerMemory* const peers_;
  std::vector<Locked> free_;
};

}  // namespace pycomm
