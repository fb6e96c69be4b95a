// Which algorithm serves a call that names none. All ranks decide alike: nothing here depends on the rank.
#pragma once

#include <cstdint>
#include <string>

#include "plan/spec.h"

namespace pycomm {

struct Choice {
  Collective collective = Collective::all_reduce;
  int size = 1;
  std::int64_t bytes = 0;  // of the whole vector
  bool rounds = false;     // 16-bit elements or a lossy codec: every partial sum on the wire is rounded
  bool mapped = false;     // all peers' memory is addressable
  bool uneven = false;     // the caller chose the sizes of the parts
  int nodes = 0;           // sets of ranks that address each other's memory; `size` when no two ranks do
};

// The short name of the algorithm ("ring").
std::string select_algorithm(const Choice& choice);

}  // namespace pycomm
