// A group of ranks and the calls they make together: has a call checked, chooses its algorithm, and hands it
// to the driver.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "engine/call.h"
#include "engine/compiled_plan.h"
#include "engine/engine.h"
#include "engine/executor_host.h"
#include "engine/prepared.h"
#include "engine/recent_calls.h"
#include "plan/select.h"

namespace pycomm {

// Threads: any. Operations of one communicator start in the order of submit(), which must be the same on all
// its ranks; sends and receives are matched per peer and independent of those.
class Communicator {
 public:
  Communicator(std::shared_ptr<Engine> engine, std::shared_ptr<Group> group, std::int64_t segment_bytes);

  // Never blocks. Throws InvalidArgument before anything moves, or the first cause if the communicator is
  // broken.
  std::shared_ptr<Work> submit(Call call) { return start(prepare(std::move(call))); }
  // What submit() does once: checks the call and plans it. Local; throws InvalidArgument.
  Prepared prepare(Call call);
  // And what it does each time. The work is the same each time: it must be done, and nobody interested in it.
  std::shared_ptr<Work> start(const Prepared& prepared);
  // The same as prepare(), in less time for a call like one that has been kept.
  std::unique_ptr<Prepared> prepare_again(Call call);
  // For a call whose work is done and which nobody will start or look at any more.
  void keep(std::unique_ptr<Prepared> prepared);
  // Throws what submit() would throw of the call's arguments.
  void check(const Call& call) { choose(call, check_call(call, rank(), size())); }
  // How the algorithm of such a call is chosen. Local; throws InvalidArgument for a name that is none.
  Explanation explain(Choice choice, std::string_view named) {
    check_order(choice.collective, choice.order, size());
    choice.size = size();
    choice.mapped = node_count_ == 1;
    return selector_.explain(choice, named);
  }
  const Selector& selector() const { return selector_; }

  // True once the work is done. Call again as long as you want to wait.
  bool wait(const Work& work, double seconds);

  // Breaks the communicator here and on its other ranks. Does not block.
  void abort(const std::string& why);

  int rank() const { return group_->rank; }
  int size() const { return group_->size(); }
  // The ranks of each node: those that address each other's memory. In order of their lowest ranks.
  std::vector<std::vector<int>> nodes() const;
  const Group& group() const { return *group_; }
  const std::shared_ptr<Group>& shared_group() const { return group_; }
  std::int64_t segment_bytes() const { return segment_bytes_; }
  Engine& engine() const { return *engine_; }
  std::optional<Failure> failure() const { return group_->failure(); }

  // The ranks with `world_ranks` of this communicator's world become one. All of them must give the same
  // context and segment.
  std::shared_ptr<Communicator> subgroup(std::uint32_t context, int rank, std::vector<int> world_ranks,
                                         std::int64_t segment_bytes) const;
  // The smallest segment that the pairs between this rank and these prefer.
  std::int64_t preferred_segment_bytes(const std::vector<int>& world_ranks) const;

 private:
  struct PlanKey {
    const Algorithm* algorithm;
    int root;
    Order order;
    bool in_place;
    auto operator<=>(const PlanKey&) const = default;
  };

  Spec spec(const Call& call, int of_rank) const;
  const Algorithm& choose(const Call& call, const CheckedCall& checked);
  std::shared_ptr<const CompiledPlan> plan_for(const Algorithm& algorithm, const Call& call, bool in_place);
  std::unique_ptr<Executor> executor_for(const Call& call, const CheckedCall& checked,
                                         std::shared_ptr<Operation> operation, const Header& header) const;

  const std::shared_ptr<Engine> engine_;
  const std::shared_ptr<Group> group_;
  const std::int64_t segment_bytes_;
  const std::vector<int> node_of_;  // as in Spec
  const int node_count_;
  Selector selector_;

  std::mutex mutex_;  // guards the rest, and makes numbering and submitting one act
  std::uint32_t sequence_ = 0;
  std::uint32_t history_ = 0;                                    // digest of the collectives so far
  std::map<std::pair<int, bool>, std::uint32_t> pair_sequence_;  // by (peer, sending)
  std::map<PlanKey, std::shared_ptr<const CompiledPlan>> plans_;
  RecentCalls recent_;
};

}  // namespace pycomm
