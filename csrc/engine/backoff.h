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
  // Spins between two looks at the clock, which costs as much as a pass.
  static constexpr unsigned kBlindSpins = 8;

  void reset() { *this = {}; }

  // Has waited longer than a message takes: the caller has time.
  bool rests() const { return rests_; }

  // Spins or yields and returns zero, or returns how long to sleep.
  std::chrono::microseconds pause() {
    if (!rests_ && ++spins_ % kBlindSpins != 0) return {};
    const auto now = Clock::now();
    if (spins_ == kBlindSpins) since_ = now;
    const auto waited = std::chrono::duration_cast<std::chrono::microseconds>(now - since_);
    rests_ = waited >= kSpin;
    if (!rests_) return {};
    if (waited < kYield) {
      std::this_thread::yield();
      return {};
    }
    return std::clamp(waited / 8, std::chrono::microseconds(50), std::chrono::microseconds(1000));
  }

 private:
  bool rests_ = false;
  unsigned spins_ = 0;
  Clock::time_point since_{};
};

}  // namespace pycomm
