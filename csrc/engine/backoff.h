// How a driver waits when nothing moves: it spins as long as a message takes, then lets others run, then
// sleeps, never longer than an eighth of what it has waited already. Ranks may outnumber cores.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

#include "engine/work.h"

namespace pycomm {

class Backoff {
 public:
  static constexpr std::chrono::microseconds kSpin{20};
  static constexpr std::chrono::microseconds kYield{100};

  void reset() { waiting_ = false; }

  // Spins or yields and returns zero, or returns how long to sleep.
  std::chrono::microseconds pause() {
    const auto now = Clock::now();
    if (!waiting_) {
      waiting_ = true;
      since_ = now;
    }
    const auto waited = std::chrono::duration_cast<std::chrono::microseconds>(now - since_);
    if (waited < kSpin) return {};
    if (waited < kYield) {
      std::this_thread::yield();
      return {};
    }
    return std::clamp(waited / 8, std::chrono::microseconds(50), std::chrono::microseconds(1000));
  }

 private:
  bool waiting_ = false;
  Clock::time_point since_{};
};

}  // namespace pycomm
