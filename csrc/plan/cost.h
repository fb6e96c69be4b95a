// What a plan costs, in seconds, foretold from the plan itself: a new algorithm needs no formula of its own.
//
// The model is alpha-beta-gamma (Hockney, "The communication challenge for MPP", 1994; Thakur, Rabenseifner
// and Gropp, "Optimization of collective communication operations in MPICH", 2005) with the occupancy of the
// ends apart from the latency between them (LogP: Culler and others, 1993). All ranks' plans are played
// through, stage by stage: each rank has a processor that sends, receives and reduces in turn, and on a
// network one way in and one way out besides; a message may be passed on from its first segment, and is
// complete with its last. The price is the time at which the last rank has done its last step.
#pragma once

#include <memory>
#include <vector>

#include "plan/links.h"
#include "plan/plan.h"
#include "plan/prices.h"

namespace pycomm {

// What prices depend on, besides the plans.
struct Load {
  double bytes = 0;       // of the whole vector; of all_to_all, what each rank gives
  double wire_ratio = 1;  // bytes that travel per byte of data
  bool coded = false;     // wires are encoded and decoded
  bool half = false;      // 16-bit elements
  double crowd = 1;       // ranks per core of the busiest machine, at least 1
  double segment_bytes = 1 << 17;
};

struct Script;  // the plans of a group, compact

// The plans of all ranks of an algorithm on a group, ready to be priced for any load. Beyond kPlayedRanks
// ranks, groups of a quarter, half and all of that number are played (evenly spaced ranks, or the first ones
// where those hold whole machines) and the price is carried on by doublings: rounds that grow with log N,
// with N, and bytes that fall as 1/N all change by a constant factor from one doubling to the next. So a
// price takes less than a millisecond at any N.
class Costing {
 public:
  static constexpr int kPlayedRanks = 32;

  // `node_of` as in Spec.
  Costing(const Algorithm& algorithm, const Links& links, const std::vector<int>& node_of = {},
          Order order = Order::any);

  double seconds(const Load& load, const Prices& prices) const;
  // Every sum is rounded once: of 16-bit elements because it is taken in one step; on lossy wires (`lossy`)
  // because no rank sends a partial sum of what it received.
  bool rounds_once(bool lossy) const { return lossy ? sends_once_ : sums_once_; }

 private:
  std::vector<std::shared_ptr<const Script>> scripts_;  // of growing groups; one where all are played
  double doublings_ = 0;                                // from the last of them to the whole group
  bool sums_once_ = true;
  bool sends_once_ = true;
};

}  // namespace pycomm
