#include "engine/fork_guard.h"

#include <pthread.h>

#include <atomic>

#include "core/error.h"

namespace pycomm {
namespace {

std::atomic<unsigned>& generation() {
  static std::atomic<unsigned> value{[] {
    pthread_atfork(nullptr, nullptr, [] { generation().fetch_add(1, std::memory_order_relaxed); });
    return 0u;
  }()};
  return value;
}

}  // namespace

ForkGuard::ForkGuard() : generation_(generation().load(std::memory_order_relaxed)) {}

bool ForkGuard::forked() const {
  return generation().load(std::memory_order_relaxed) != generation_;
}

void ForkGuard::check() const {
  if (forked())
    throw Aborted(
        "this process was forked from one that had called pycomm.init(); communicators do not survive a "
        "fork: start such "
        "workers before init(), or with the 'spawn' method");
}

}  // namespace pycomm
