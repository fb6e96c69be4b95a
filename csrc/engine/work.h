// What the caller holds of an operation: its state, its outcome, when things happened.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "core/error.h"
#include "core/trace.h"

namespace pycomm {

using Clock = std::chrono::steady_clock;

inline double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

struct Failure {
  ErrorKind kind = ErrorKind::internal;
  std::string what;
};

// Threads: written by the driver (before `done_` is released) and read by anyone afterwards; abandon() by
// anyone. Once done it may be submitted again, by whoever knows that nobody reads the old outcome.
class Work {
 public:
  explicit Work(std::shared_ptr<void> keepalive, TracedCall call = {})
      : call_(call), keepalive_(std::move(keepalive)) {}

  const TracedCall& call() const { return call_; }

  bool done() const { return done_.load(std::memory_order_acquire); }
  // Null while running and after success.
  const Failure* failure() const { return done() && failure_ ? &*failure_ : nullptr; }

  // Asks the driver to give the operation up.
  void abandon(const std::string& why);
  // Why it was given up; null while it is not. Driver only.
  const std::string* abandoned() const { return abandoned_.load(std::memory_order_acquire); }

  Clock::time_point submitted() const { return submitted_; }
  Clock::time_point started() const { return started_; }
  Clock::time_point finished() const { return finished_; }
  std::int64_t bytes_sent() const { return bytes_sent_; }

  // Before every run, or after it.
  void hold(std::shared_ptr<void> keepalive) { keepalive_ = std::move(keepalive); }
  // Before every run.
  void submit(std::uint32_t sequence);

  // Driver only. finish() is the last that it does with the work.
  void start(Clock::time_point now) { started_ = now; }
  void finish(std::optional<Failure> failure, std::int64_t bytes_sent, Clock::time_point now);

 private:
  TracedCall call_;
  std::shared_ptr<void> keepalive_;  // the caller's objects whose memory the operation uses
  Clock::time_point submitted_{};
  Clock::time_point started_{};
  Clock::time_point finished_{};
  std::int64_t bytes_sent_ = 0;
  std::optional<Failure> failure_;
  std::atomic<bool> done_{false};
  std::atomic<const std::string*> abandoned_{nullptr};

 public:
  ~Work() { delete abandoned_.load(); }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;
};

}  // namespace pycomm
