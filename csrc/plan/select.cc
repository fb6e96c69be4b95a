#include "plan/select.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/error.h"

namespace pycomm {
namespace {

// What is rounded at every hop is chosen only where nothing else serves, up to that many ranks: more get
// messages that are too small from algorithms that round once.
constexpr int kRoundOnceRanks = 16;

constexpr int kHalfWidth = 2, kWidth = 4;  // of elements, as tables know them: 16-bit ones and all others

constexpr double kEqual = 1e-6;

// Sizes that share a choice: a power of two is cut in four.
int size_class(std::int64_t bytes) {
  if (bytes < 4) return static_cast<int>(std::max<std::int64_t>(bytes, 0));
  const int log = std::bit_width(static_cast<std::uint64_t>(bytes)) - 1;
  return 4 * (log - 1) + static_cast<int>((bytes >> (log - 2)) & 3);
}

// The smallest size of a class: every rank prices the same one, whichever came first.
std::int64_t smallest_of(int size_class) {
  if (size_class < 4) return size_class;
  return std::int64_t{4 + size_class % 4} << (size_class / 4 - 1);
}

std::uint64_t key_of(const Choice& choice) {
  const auto ratio = static_cast<std::uint64_t>(std::lround(choice.wire_ratio * 1024));
  return static_cast<std::uint64_t>(choice.collective) | std::uint64_t{choice.half} << 8 |
         std::uint64_t{choice.lossy} << 9 | std::uint64_t{choice.mapped} << 10 |
         std::uint64_t{choice.uneven} << 11 | static_cast<std::uint64_t>(choice.order) << 12 |
         static_cast<std::uint64_t>(size_class(choice.bytes)) << 16 | ratio << 32;
}

// Some node holds several ranks, and there is another.
bool several_nodes(const std::vector<int>& node_of) {
  return std::any_of(node_of.begin(), node_of.end(), [](int node) { return node > 0; });
}

}  // namespace

std::string_view lacks(const Algorithm& algorithm, const Choice& choice) {
  if (algorithm.supports && !algorithm.supports(choice.size)) return "not for this number of ranks";
  if (choice.lossy && !algorithm.lossy_codecs) return "ranks would end with different bits under this codec";
  if (choice.uneven && !algorithm.uneven) return "not for parts of chosen sizes";
  if (algorithm.mapped && !choice.mapped && choice.size > 1) return "peers' memory is not addressable";
  if (!keeps(algorithm, choice.order, choice.rounds())) return "sums are not added in this order";
  return "";
}

std::string names_of_serving(const Choice& choice) {
  std::string names;
  for (const Algorithm* algorithm : algorithms_for(choice.collective))
    if (serves(*algorithm, choice)) names += (names.empty() ? "" : ", ") + short_name(*algorithm);
  return names;
}

Selector::Selector(Links links, std::vector<int> node_of, double crowd, std::int64_t segment_bytes,
                   std::shared_ptr<const Settings> settings)
    : links_(std::move(links)),
      node_of_(std::move(node_of)),
      crowd_(crowd),
      segment_bytes_(segment_bytes),
      settings_(std::move(settings)),
      prices_([&]() -> const Prices& {
        const Prices* const measured = settings_->table.prices_for(links_);
        return measured ? *measured : built_in_prices();
      }()) {}

Load Selector::load_of(const Choice& choice) const {
  return {.bytes = static_cast<double>(choice.bytes),
          .wire_ratio = choice.wire_ratio,
          .coded = choice.lossy,
          .half = choice.half,
          .crowd = crowd_,
          .segment_bytes = static_cast<double>(segment_bytes_)};
}

const Costing& Selector::costing(const Algorithm& algorithm, Order order) {
  const std::pair key(&algorithm, order);
  const auto known = costings_.find(key);
  if (known != costings_.end()) return known->second;
  return costings_.emplace(key, Costing(algorithm, links_, node_of_, order)).first->second;
}

std::vector<Candidate> Selector::candidates(const Choice& choice) {
  const Table::Times* times =
      choice.lossy ? nullptr
                   : settings_->table.find(links_, choice.collective, choice.half ? kHalfWidth : kWidth);
  std::vector<Candidate> all;
  bool some_round_once = false;
  for (const Algorithm* algorithm : algorithms_for(choice.collective)) {
    Candidate& candidate = all.emplace_back(Candidate{algorithm, lacks(*algorithm, choice)});
    if (!candidate.lacks.empty()) continue;
    if (algorithm->volume_of_node && !several_nodes(node_of_)) {
      candidate.lacks = "follows nodes, of which there is one, or one for each rank";
      continue;
    }
    const Costing& cost = costing(*algorithm, choice.order);
    candidate.model_s = cost.seconds(load_of(choice), prices_);
    some_round_once |= cost.rounds_once(choice.lossy);
    if (!times) continue;
    const auto curve = times->by_algorithm.find(short_name(*algorithm));
    if (curve != times->by_algorithm.end())
      candidate.table_s = curve->second.at(static_cast<double>(choice.bytes));
  }
  if (choice.rounds() && reduces(choice.collective) && choice.size <= kRoundOnceRanks && some_round_once)
    for (Candidate& candidate : all)
      if (candidate.lacks.empty() && !costing(*candidate.algorithm, choice.order).rounds_once(choice.lossy))
        candidate.lacks = "others round once, this at every hop";
  return all;
}

// The first in order of name among equals; mathematics libraries of different processors may differ in the
// last digits, and all ranks must choose alike.
const Candidate* Selector::cheapest(const std::vector<Candidate>& candidates, bool measured) {
  const Candidate* best = nullptr;
  for (const Candidate& candidate : candidates)
    if (candidate.lacks.empty() && (!measured || candidate.table_s > 0) &&
        (!best || candidate.seconds() < (1 - kEqual) * best->seconds()))
      best = &candidate;
  return best;
}

const Algorithm& Selector::select(const Choice& choice) {
  if (!settings_->rules.empty())
    if (const Algorithm* const named = settings_->rules.find(choice.collective, choice.bytes)) return *named;
  const std::lock_guard lock(mutex_);
  const Algorithm*& chosen = chosen_[key_of(choice)];
  if (!chosen) {
    const std::vector<const Algorithm*> known = algorithms_for(choice.collective);
    if (known.size() == 1) return *(chosen = known[0]);
    Choice rounded = choice;
    rounded.bytes = smallest_of(size_class(choice.bytes));
    const std::vector<Candidate> all = candidates(rounded);
    const Candidate* best = cheapest(all, true);
    if (!best) best = cheapest(all, false);
    PYCOMM_DCHECK(best != nullptr);
    chosen = best->algorithm;
  }
  return *chosen;
}

Explanation Selector::explain(const Choice& choice, std::string_view named) {
  Explanation out;
  if (!named.empty()) {
    out.algorithm = &algorithm_named(choice.collective, named);
    out.by = ChosenBy::call;
  } else {
    out.algorithm = &select(choice);
    const Algorithm* const ruled = settings_->rules.find(choice.collective, choice.bytes);
    if (ruled) out.by = ChosenBy::rules;
  }
  const std::lock_guard lock(mutex_);
  out.candidates = candidates(choice);
  for (const Candidate& candidate : out.candidates) {
    if (candidate.algorithm != out.algorithm) continue;
    out.seconds = candidate.seconds();
    if (out.by == ChosenBy::model && candidate.table_s > 0) out.by = ChosenBy::table;
  }
  return out;
}

}  // namespace pycomm
