// Which algorithm serves a call: the one that the call names, else the one that PYCOMM_ALGO names, else the
// cheapest of those that serve it, by measured times where there are some, by prices of its plan otherwise.
// All ranks decide alike: nothing here depends on the rank, and rules and times are rank 0's.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "plan/cost.h"
#include "plan/rules.h"
#include "plan/table.h"

namespace pycomm {

// A call as the choice sees it.
struct Choice {
  Collective collective = Collective::all_reduce;
  int size = 1;
  std::int64_t bytes = 0;  // of the whole vector; of all_to_all, what each rank gives
  bool half = false;       // 16-bit elements
  bool lossy = false;      // the codec rounds
  double wire_ratio = 1;   // bytes that travel per byte of data
  bool mapped = false;     // all peers' memory is addressable
  bool uneven = false;     // the caller chose the sizes of the parts
  Order order = Order::any;

  // Every partial sum on the wire is rounded.
  bool rounds() const { return half || lossy; }
};

// Why the algorithm cannot serve the choice; empty when it can.
std::string_view lacks(const Algorithm& algorithm, const Choice& choice);
inline bool serves(const Algorithm& algorithm, const Choice& choice) {
  return lacks(algorithm, choice).empty();
}

enum class ChosenBy { call, rules, table, model };
inline constexpr std::array<std::string_view, 4> kChosenByNames = {"the call", "PYCOMM_ALGO", "table",
                                                                   "model"};

struct Candidate {
  const Algorithm* algorithm = nullptr;
  std::string_view lacks;  // why it cannot serve, or is not preferred; empty: it competes
  double model_s = 0;
  double table_s = 0;  // 0: not measured
  double seconds() const { return table_s > 0 ? table_s : model_s; }
};

struct Explanation {
  const Algorithm* algorithm = nullptr;
  ChosenBy by = ChosenBy::model;
  double seconds = 0;                 // predicted
  std::vector<Candidate> candidates;  // in order of name
};

// For one group of ranks. Threads: any.
class Selector {
 public:
  struct Settings {
    Rules rules;
    Table table;
  };

  // `node_of` as in Spec; `crowd` and `segment_bytes` as in Load.
  Selector(Links links, std::vector<int> node_of, double crowd, std::int64_t segment_bytes,
           std::shared_ptr<const Settings> settings);

  // The algorithm that PYCOMM_ALGO names, which may not serve the choice, else one that does. A choice is
  // made once for sizes within a quarter of a power of two; later calls look it up.
  const Algorithm& select(const Choice& choice);
  // `named`: what the call itself names, if anything. Computed afresh.
  Explanation explain(const Choice& choice, std::string_view named);

  const Links& links() const { return links_; }
  const std::vector<int>& node_of() const { return node_of_; }
  const Prices& prices() const { return prices_; }
  Load load_of(const Choice& choice) const;

 private:
  const Costing& costing(const Algorithm& algorithm, Order order);
  std::vector<Candidate> candidates(const Choice& choice);
  static const Candidate* cheapest(const std::vector<Candidate>& candidates, bool measured);

  const Links links_;
  const std::vector<int> node_of_;
  const double crowd_;
  const std::int64_t segment_bytes_;
  const std::shared_ptr<const Settings> settings_;
  const Prices& prices_;

  std::mutex mutex_;  // guards the rest
  std::map<std::pair<const Algorithm*, Order>, Costing> costings_;
  std::unordered_map<std::uint64_t, const Algorithm*> chosen_;
};

// Those that serve, by comma.
std::string names_of_serving(const Choice& choice);

}  // namespace pycomm
