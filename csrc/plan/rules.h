// PYCOMM_ALGO: which algorithm serves a collective, by size, as the user says.
//
//   all_reduce:direct<256K;ring,broadcast:binomial
//
//   rules      = rule { ("," or spaces) rule }            a collective has one rule
//   rule       = collective ":" algorithm { ";" algorithm }
//   algorithm  = name [ "<" size ]                        sizes grow, and only the last may have none
//   size       = digits [ "K" or "M" or "G" ]             bytes of the whole vector; powers of 1024
//
// A call below a size takes the first algorithm that stands before such a size; above the last size the
// choice is free.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "plan/plan.h"

namespace pycomm {

class Rules {
 public:
  Rules() = default;
  // Throws InvalidArgument naming `source`, the place, what was expected there and what exists.
  Rules(std::string_view text, std::string_view source);

  // Null where nothing is said.
  const Algorithm* find(Collective collective, std::int64_t bytes) const;
  bool empty() const { return rules_.empty(); }
  // In one form, without spaces.
  std::string to_text() const;

 private:
  struct Range {
    const Algorithm* algorithm;
    std::int64_t below;  // bytes; the largest number where none was given
  };
  std::map<Collective, std::vector<Range>> rules_;
};

}  // namespace pycomm
