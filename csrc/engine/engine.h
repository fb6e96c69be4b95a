// One engine per init(): the transports of one rank, the driver that moves everything over them, and the
// memory they borrow. Communicators share it.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bootstrap/bootstrap.h"
#include "core/trace.h"
#include "engine/driver.h"
#include "engine/fork_guard.h"
#include "engine/pinned_memory.h"
#include "engine/settings.h"
#include "engine/staging.h"
#include "plan/select.h"
#include "transport/router.h"

namespace pycomm {

class Engine {
 public:
  // Collective over the environment's ranks. All ranks end with rank 0's settings; differences are named in
  // warnings() of rank 0.
  static std::shared_ptr<Engine> create(const Environment& environment, const Settings& settings,
                                        bool progress_thread);
  ~Engine();

  // Stops everything; pending operations fail with Aborted. True when nothing is left in a transport's hands.
  bool close();
  bool closed() const { return closed_; }

  int rank() const { return rank_; }
  int size() const { return size_; }
  const Settings& settings() const { return settings_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  // How the choice among algorithms is made; rank 0's.
  const std::shared_ptr<const Selector::Settings>& selection() const { return selection_; }
  // Between all ranks, agreed at init.
  const Links& links() const { return *links_; }
  // Ranks that share rank 0's cores, per core; at least 1.
  double crowd() const { return crowd_; }
  // The segment that all pairs can live with, agreed at init.
  std::int64_t segment_bytes() const { return segment_bytes_; }
  bool has_progress_thread() const { return progress_thread_; }

  // Throw Aborted after close() and in forked children.
  void check_usable() const;
  Router& router() const { return *parts_->router; }
  Driver& driver() const { return *parts_->driver; }
  Staging& staging() const { return parts_->staging; }
  PinnedMemory& pinned_memory() const { return *parts_->pinned; }
  Trace& trace() const { return parts_->trace; }

 private:
  struct Parts {
    std::shared_ptr<void> environment_owner;
    Trace trace;
    Staging staging;
    std::unique_ptr<Bootstrap> bootstrap;
    std::unique_ptr<Router> router;
    std::unique_ptr<PinnedMemory> pinned;
    std::unique_ptr<Driver> driver;
  };

  Engine() = default;
  void agree(const Settings& mine);
  void introduce(const Exchange& exchange);

  int rank_ = 0;
  int size_ = 1;
  bool progress_thread_ = false;
  std::atomic<bool> closed_{false};
  std::atomic<bool> leaks_{false};  // closed with buffers in a transport's hands
  std::int64_t segment_bytes_ = 0;
  Settings settings_;
  std::vector<std::string> warnings_;
  std::shared_ptr<const Selector::Settings> selection_;
  std::optional<Links> links_;
  double crowd_ = 1;
  ForkGuard fork_guard_;
  std::unique_ptr<Parts> parts_;  // leaked in forked children, and when a transport still uses our buffers
};

}  // namespace pycomm
