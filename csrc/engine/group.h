// What the operations of one communicator share.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/work.h"
#include "transport/transport.h"

namespace pycomm {

// Messages of one communicator that are numbered apart from each other.
enum class Plane : std::uint32_t { collectives, pairs, mail };
inline constexpr std::uint32_t kPlanes = 4;  // in a tag's context; one is spare

inline Tag tag_of(std::uint32_t context, Plane plane, std::uint32_t sequence) {
  return {kPlanes * context + static_cast<std::uint32_t>(plane), sequence};
}

// Threads: the constants by anyone; `running` by the driver; the failure by anyone.
class Group {
 public:
  Group(std::uint32_t context, int rank, std::vector<int> world_ranks)
      : context(context), rank(rank), world_ranks(std::move(world_ranks)) {}

  const std::uint32_t context;         // larger than those of all earlier communicators of any of its ranks
  const int rank;                      // ours, in this group
  const std::vector<int> world_ranks;  // by rank in this group
  int running = 0;                     // collectives that have started and not finished

  int size() const { return static_cast<int>(world_ranks.size()); }

  std::optional<Failure> failure() const {
    // Asked in every pass. Acquire: whoever sees it set sees what came before the failure, too.
    if (!failed_.load(std::memory_order_acquire)) return std::nullopt;
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  // The first cause stands; true if this was it.
  bool fail(const Failure& failure) {
    const std::lock_guard lock(mutex_);
    if (failure_) return false;
    failure_ = failure;
    failed_.store(true, std::memory_order_release);
    return true;
  }

 private:
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  std::optional<Failure> failure_;
};

}  // namespace pycomm
