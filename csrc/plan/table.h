// Times that python -m pycomm.tune measured, and the prices fitted to them, by group of ranks.
//
// The file that users see is JSON (pycomm/tuned.py); what ranks tell each other, and read here, is lines:
//
//   group RANKS RANKS_PER_MACHINE LINKS          "group 4 2 mpi/network+shm"; the lines below belong to it
//   price NAME VALUE                             "price shm.byte_s 1e-10"
//   times COLLECTIVE WIDTH ALGORITHM BYTES SECONDS BYTES SECONDS ...
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "plan/links.h"
#include "plan/plan.h"
#include "plan/prices.h"

namespace pycomm {

class Table {
 public:
  // Seconds over bytes, both growing in bytes.
  struct Curve {
    std::vector<double> bytes, seconds;
    // Between two sizes as the logarithms do; below the first its time, above the last by its rate.
    double at(double wanted) const;
  };
  struct Times {
    std::map<std::string, Curve> by_algorithm;  // short names
  };

  Table() = default;
  // Throws InvalidArgument naming the line, what was expected and what exists.
  explicit Table(const std::string& lines);

  // Of just such a group; null when there are none.
  const Times* find(const Links& links, Collective collective, int width) const;
  // Of just such a group, or else of the largest with the same kinds of links; null when there are none.
  const Prices* prices_for(const Links& links) const;
  bool empty() const { return groups_.empty(); }

 private:
  struct Group {
    int ranks = 0;
    int ranks_per_machine = 0;
    std::string links;
    Prices prices;
    bool priced = false;
    std::map<std::pair<Collective, int>, Times> times;
  };
  bool is(const Group& group, const Links& links) const;

  std::vector<Group> groups_;
};

}  // namespace pycomm
