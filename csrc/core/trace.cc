#include "core/trace.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/error.h"

namespace pycomm {
namespace {

constexpr std::chrono::microseconds kStall{50};

// The number under which the system's tools show this thread.
std::uint32_t this_thread() {
#if defined(__linux__)
  static thread_local const auto number = static_cast<std::uint32_t>(syscall(SYS_gettid));
#else
  static std::atomic<std::uint32_t> next{1};
  static thread_local const std::uint32_t number = next++;
#endif
  return number;
}

std::string quoted(std::string_view words) {
  std::string out = "\"";
  for (const char c : words) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
      continue;
    }
    char code[8];
    std::snprintf(code, sizeof code, "\\u%04x", c);
    out += code;
  }
  return out + '"';
}

std::string short_bytes(std::int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 999.5 && unit < 4; ++unit) value /= 1000;
  char out[32];
  std::snprintf(out, sizeof out, "%.3g %s", value, kUnits[unit]);
  return out;
}

bool is_pair(const TracedCall& call) {
  return call.collective == "send" || call.collective == "recv";
}

std::string title(const TracedCall& call) {
  std::string out(call.collective);
  if (call.bucket >= 0) out += text(" bucket ", call.bucket);
  if (call.collective == "send") out += text(" to ", call.root);
  if (call.collective == "recv") out += text(" from ", call.root);
  if (call.bytes > 0) out += " " + short_bytes(call.bytes);
  return is_pair(call) ? out : text(out, ' ', call.algorithm);
}

// What tells one operation from all others, the same on all ranks of a collective.
std::string identity(const TracedCall& call) {
  return text("\"collective\":", quoted(call.collective), ",\"communicator\":", call.communicator,
              ",\"sequence\":", call.sequence, call.bucket < 0 ? "" : text(",\"bucket\":", call.bucket));
}

std::string arguments(const TracedCall& call, std::int64_t bytes_sent, const std::string& failure) {
  return text(identity(call), ",\"dtype\":", quoted(call.dtype), ",\"count\":", call.count,
              ",\"bytes\":", call.bytes, ",\"algorithm\":", quoted(call.algorithm),
              ",\"codec\":", quoted(call.codec),
              call.root < 0 ? "" : text(is_pair(call) ? ",\"peer\":" : ",\"root\":", call.root),
              ",\"bytes_sent\":", bytes_sent, failure.empty() ? "" : ",\"error\":" + quoted(failure));
}

std::int64_t nanoseconds(Trace::Time time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

// Microseconds, the format's unit, to the nanosecond.
std::string microseconds(std::int64_t ns) {
  char out[32];
  std::snprintf(out, sizeof out, "%s%lld.%03lld", ns < 0 ? "-" : "",
                static_cast<long long>(std::llabs(ns) / 1000), static_cast<long long>(std::llabs(ns) % 1000));
  return out;
}

}  // namespace

struct Trace::Event {
  std::atomic<bool> complete{false};  // released once the rest is written
  bool is_operation = false;
  std::uint32_t thread = 0;
  Moments moments;  // a span has no `submitted`
  TracedCall call;
  std::int64_t bytes_sent = 0;
  std::string name;     // of a span
  std::string details;  // a span's arguments, or why an operation failed

  std::string render(std::int64_t index, int process, CommonClock clock) const;
};

Trace::~Trace() {
  for (auto& block : blocks_) delete[] block.load();
}

std::uint64_t Trace::next_identity() {
  static std::atomic<std::uint64_t> next{1};
  return next++;
}

void Trace::start(std::int64_t capacity) {
  PYCOMM_CHECK(capacity > 0, "a trace for ", capacity, " events; expected at least 1");
  PYCOMM_CHECK(capacity_ == 0, "this trace was started before");
  blocks_ = std::vector<std::atomic<Event*>>((capacity + kBlock - 1) / kBlock);
  capacity_ = capacity;
  on_.store(true, std::memory_order_release);
}

// Null when the memory is full.
Trace::Event* Trace::take() {
  const std::int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
  if (index >= capacity_) return nullptr;
  auto& block = blocks_[index / kBlock];
  Event* events = block.load(std::memory_order_acquire);
  if (!events) {
    const std::lock_guard lock(mutex_);
    events = block.load(std::memory_order_relaxed);
    if (!events) block.store(events = new (std::nothrow) Event[kBlock], std::memory_order_release);
  }
  return events ? events + index % kBlock : nullptr;
}

const Trace::Event* Trace::at(std::int64_t index) const {
  const Event* events = blocks_[index / kBlock].load(std::memory_order_acquire);
  if (!events || !events[index % kBlock].complete.load(std::memory_order_acquire)) return nullptr;
  return events + index % kBlock;
}

void Trace::span(std::string_view name, Time begin, Time end, std::string arguments) {
  Event* event = take();
  if (!event) return;
  event->thread = this_thread();
  event->moments = {{}, begin, end};
  event->name = name;
  event->details = std::move(arguments);
  event->complete.store(true, std::memory_order_release);
}

void Trace::operation(const TracedCall& call, const Moments& moments, std::int64_t bytes_sent,
                      std::string failure) {
  Event* event = take();
  if (!event) return;
  event->is_operation = true;
  event->thread = this_thread();
  event->moments = moments;
  event->call = call;
  event->bytes_sent = bytes_sent;
  event->details = std::move(failure);
  event->complete.store(true, std::memory_order_release);
}

void Trace::name_thread(std::string name) {
  const std::lock_guard lock(mutex_);
  names_[this_thread()] = std::move(name);
}

bool Trace::meets_thread() const {
  static thread_local std::uint64_t met = 0;
  return std::exchange(met, identity_) != identity_;
}

std::int64_t Trace::recorded() const {
  return std::min(next_.load(std::memory_order_relaxed), capacity_);
}

std::int64_t Trace::dropped() const {
  return next_.load(std::memory_order_relaxed) - recorded();
}

std::map<std::uint32_t, std::string> Trace::threads() const {
  std::map<std::uint32_t, std::string> out;
  {
    const std::lock_guard lock(mutex_);
    out = names_;
  }
  for (std::int64_t i = 0; i < recorded(); ++i)
    if (const Event* event = at(i)) out.try_emplace(event->thread);
  return out;
}

std::string Trace::render(std::int64_t first, std::int64_t last, int process, CommonClock clock) const {
  std::string out;
  for (std::int64_t i = first; i < std::min(last, recorded()); ++i)
    if (const Event* event = at(i)) out += event->render(i, process, clock);
  return out;
}

std::string Trace::Event::render(std::int64_t index, int process, CommonClock clock) const {
  const auto at = [&](Time time) {
    const auto since_zero = static_cast<double>(nanoseconds(time) - clock.zero_ns);
    return static_cast<std::int64_t>(std::llround(since_zero * clock.rate));
  };
  const std::string place = text("\"pid\":", process, ",\"tid\":", thread);
  const std::int64_t end = at(moments.finished);
  if (!is_operation) {
    const std::int64_t begin = at(moments.started);
    return text(",\n{\"ph\":\"X\",", place, ",\"ts\":", microseconds(begin),
                ",\"dur\":", microseconds(end - begin), ",\"name\":", quoted(name), ",\"args\":{", details,
                "}}");
  }
  const std::string head = text(place, ",\"cat\":\"operation\",\"id2\":{\"local\":\"", index, "\"}");
  const auto mark = [&](char phase, std::int64_t when, const std::string& what, const std::string& more) {
    return text(",\n{\"ph\":\"", phase, "\",", head, ",\"ts\":", microseconds(when),
                ",\"name\":", quoted(what), more, "}");
  };
  const std::string what = title(call);
  const std::int64_t submitted = at(moments.submitted);
  return mark('b', submitted, what, ",\"args\":{" + arguments(call, bytes_sent, details) + "}") +
         mark('b', submitted, "queued", "") +
         mark('e', moments.started == Time{} ? end : at(moments.started), "queued", "") +
         mark('e', end, what, "");
}

void TraceSpan::end() {
  trace_->span(name_, begin_, Trace::Clock::now(), call_ ? identity(*call_) : std::string());
}

void TraceStalls::end() {
  const Trace::Time now = Trace::Clock::now();
  if (now - begin_ >= kStall) trace_.span("stalled", begin_, now);
  begin_ = {};
}

}  // namespace pycomm
