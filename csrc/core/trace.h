// Records what one rank does, for the Trace Event Format that Perfetto and chrome://tracing read. Off, it
// costs a branch; on, an event is an atomic increment and some stores into memory of a bounded size (about
// 200 bytes each, taken as it fills), without a lock. What does not fit is counted. Nothing is written to
// files here.
//
// Spans belong to a thread and nest. Operations do not: several are in flight at once, and more than one
// thread may drive one. They become asynchronous slices, which viewers stack in rows of their own, equal
// names in one row: so there is a row per bucket, per size of broadcast, and so on.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace pycomm {

// What an operation is. The names must live as long as the program: those of enums and registries do.
struct TracedCall {
  std::string_view collective;
  std::string_view dtype;
  std::string_view algorithm;
  std::string_view codec;
  std::int64_t count = 0;  // elements of the whole vector
  std::int64_t bytes = 0;  // the same
  std::uint32_t communicator = 0;
  std::uint32_t sequence = 0;
  int root = -1;    // or the peer of a send or recv; none
  int bucket = -1;  // none
};

class Trace {
 public:
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;
  struct Moments {
    Time submitted;
    Time started;  // the clock's epoch: never
    Time finished;
  };

  Trace() : identity_(next_identity()) {}
  ~Trace();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  // Begins recording, once, with memory for so many events.
  void start(std::int64_t capacity);
  // Ends it: spans that are open are still recorded when they end.
  void stop() { on_.store(false, std::memory_order_relaxed); }
  bool on() const { return on_.load(std::memory_order_acquire); }  // acquire: sees what start() made

  // Any thread, after start(). `arguments` is the inside of a JSON object.
  void span(std::string_view name, Time begin, Time end, std::string arguments = {});
  void operation(const TracedCall& call, const Moments& moments, std::int64_t bytes_sent,
                 std::string failure);

  // Names the calling thread; before start() too.
  void name_thread(std::string name);
  // True when the calling thread asks this for the first time: it may want a name.
  bool meets_thread() const;

  std::int64_t recorded() const;
  std::int64_t dropped() const;
  std::map<std::uint32_t, std::string> threads() const;  // by the system's number; "" without a name

  // A clock that reads 0 at `zero_ns` of this rank's and advances `rate` times as fast.
  struct CommonClock {
    std::int64_t zero_ns = 0;
    double rate = 1.0;
  };
  // Events `first` to `last`, each as ",\n" and a JSON object, under this process number.
  std::string render(std::int64_t first, std::int64_t last, int process, CommonClock clock) const;

 private:
  struct Event;
  static constexpr std::int64_t kBlock = 1024;  // events

  static std::uint64_t next_identity();
  Event* take();
  const Event* at(std::int64_t index) const;

  const std::uint64_t identity_;  // of this trace among all of this process
  std::atomic<bool> on_{false};
  std::int64_t capacity_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::vector<std::atomic<Event*>> blocks_;

  mutable std::mutex mutex_;  // guards new blocks and the rest
  std::map<std::uint32_t, std::string> names_;
};

// A span of the calling thread, from here to the end of the scope.
class TraceSpan {
 public:
  TraceSpan(Trace& trace, std::string_view name, const TracedCall* call = nullptr)
      : trace_(trace.on() ? &trace : nullptr), name_(name), call_(call) {
    if (trace_) begin_ = Trace::Clock::now();
  }
  ~TraceSpan() {
    if (trace_) end();
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  void end();

  Trace* const trace_;
  const std::string_view name_;
  const TracedCall* const call_;  // what the thread waits for; null: nothing in particular
  Trace::Time begin_{};
};

// The stretches in which a thread that drives moves nothing, where they are longer than a message takes.
class TraceStalls {
 public:
  explicit TraceStalls(Trace& trace) : trace_(trace) {}
  ~TraceStalls() { moved(); }
  TraceStalls(const TraceStalls&) = delete;
  TraceStalls& operator=(const TraceStalls&) = delete;

  void stuck() {
    if (begin_ == Trace::Time{} && trace_.on()) begin_ = Trace::Clock::now();
  }
  void moved() {
    if (begin_ != Trace::Time{}) end();
  }

 private:
  void end();

  Trace& trace_;
  Trace::Time begin_{};
};

}  // namespace pycomm
