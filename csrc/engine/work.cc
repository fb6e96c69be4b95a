#include "engine/work.h"

namespace pycomm {

void Work::abandon(const std::string& why) {
  const auto* text = new std::string(why);
  const std::string* none = nullptr;
  // Release: the driver reads the text through the pointer. The first reason stands.
  if (!abandoned_.compare_exchange_strong(none, text, std::memory_order_release, std::memory_order_relaxed))
    delete text;
}

void Work::submit(std::uint32_t sequence) {
  call_.sequence = sequence;
  submitted_ = Clock::now();
  started_ = finished_ = {};
  bytes_sent_ = 0;
  failure_.reset();
  delete abandoned_.exchange(nullptr, std::memory_order_acquire);
  done_.store(false, std::memory_order_relaxed);  // handing it to the driver again shows all this
}

void Work::finish(std::optional<Failure> failure, std::int64_t bytes_sent, Clock::time_point now) {
  failure_ = std::move(failure);
  bytes_sent_ = bytes_sent;
  finished_ = now;
  done_.store(true, std::memory_order_release);
}

}  // namespace pycomm
