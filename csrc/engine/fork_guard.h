// Knows whether this process is the one that started an engine, or a child forked from it: threads, MPI and
// shared memory do not survive a fork.
#pragma once

namespace pycomm {

class ForkGuard {
 public:
  ForkGuard();
  bool forked() const;
  // Throws Aborted in a forked child.
  void check() const;

 private:
  unsigned generation_;
};

}  // namespace pycomm
