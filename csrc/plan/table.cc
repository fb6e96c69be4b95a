#include "plan/table.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "core/error.h"

namespace pycomm {
namespace {

Collective collective_called(const std::string& name, const std::string& line) {
  const auto known = std::find(kCollectiveNames.begin(), kCollectiveNames.end(), name);
  PYCOMM_CHECK(known != kCollectiveNames.end(), "'", line, "': there is no collective '", name, "'");
  return static_cast<Collective>(known - kCollectiveNames.begin());
}

Table::Curve read_curve(std::istringstream& in, const std::string& line) {
  Table::Curve curve;
  for (double bytes = 0, seconds = 0; in >> bytes >> seconds;) {
    PYCOMM_CHECK(bytes >= 0 && seconds > 0 && std::isfinite(bytes) && std::isfinite(seconds) &&
                     (curve.bytes.empty() || bytes > curve.bytes.back()),
                 "'", line, "': expected growing bytes, each with its seconds, got ", bytes, " and ",
                 seconds);
    curve.bytes.push_back(bytes);
    curve.seconds.push_back(seconds);
  }
  PYCOMM_CHECK(in.eof() && !curve.bytes.empty(), "'", line, "': expected pairs of bytes and seconds");
  return curve;
}

}  // namespace

double Table::Curve::at(double wanted) const {
  if (wanted <= bytes.front()) return seconds.front();
  if (wanted >= bytes.back()) return seconds.back() * (bytes.back() > 0 ? wanted / bytes.back() : 1);
  const auto above = std::upper_bound(bytes.begin(), bytes.end(), wanted) - bytes.begin();
  const double low = std::log2(std::max(bytes[above - 1], 1.0)), high = std::log2(bytes[above]);
  const double share = high > low ? (std::log2(wanted) - low) / (high - low) : 0;
  return std::exp2((1 - share) * std::log2(seconds[above - 1]) + share * std::log2(seconds[above]));
}

Table::Table(const std::string& lines) {
  std::istringstream all(lines);
  for (std::string line; std::getline(all, line);) {
    std::istringstream in(line);
    std::string what;
    in >> what;
    if (what == "group") {
      Group& group = groups_.emplace_back();
      group.prices = built_in_prices();
      in >> group.ranks >> group.ranks_per_machine >> group.links;
      PYCOMM_CHECK(in && group.ranks > 0 && group.ranks_per_machine > 0, "'", line,
                   "': expected ranks, ranks per machine and links");
      continue;
    }
    PYCOMM_CHECK(!groups_.empty() && (what == "price" || what == "times"), "'", line,
                 "': expected a line that begins with group, price or times");
    Group& group = groups_.back();
    if (what == "price") {
      std::string name;
      double value = 0;
      in >> name >> value;
      double* const price = group.prices.find(name);
      PYCOMM_CHECK(in && price && value >= 0 && std::isfinite(value), "'", line,
                   "': expected the name of a price and a number of 0 or more");
      *price = value;
      group.priced = true;
      continue;
    }
    std::string collective, algorithm;
    int width = 0;
    in >> collective >> width >> algorithm;
    const Collective which = collective_called(collective, line);
    algorithm_named(which, algorithm);
    group.times[{which, width}].by_algorithm[algorithm] = read_curve(in, line);
  }
}

bool Table::is(const Group& group, const Links& links) const {
  return group.ranks == links.size() && group.ranks_per_machine == links.ranks_per_machine() &&
         group.links == links.name();
}

const Table::Times* Table::find(const Links& links, Collective collective, int width) const {
  for (const Group& group : groups_) {
    if (!is(group, links)) continue;
    const auto times = group.times.find({collective, width});
    if (times != group.times.end()) return &times->second;
  }
  return nullptr;
}

const Prices* Table::prices_for(const Links& links) const {
  const Group* best = nullptr;
  for (const Group& group : groups_) {
    if (!group.priced || group.links != links.name()) continue;
    if (is(group, links)) return &group.prices;
    if (!best || group.ranks > best->ranks) best = &group;
  }
  return best ? &best->prices : nullptr;
}

}  // namespace pycomm
