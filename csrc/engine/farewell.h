// What is known of ranks that have left.
#pragma once

#include <chrono>
#include <string>

#include "core/error.h"

namespace pycomm {

// What a rank sent before its goodbye arrives within this.
inline constexpr std::chrono::seconds kFarewell{1};

inline std::string has_left(int world_rank) {
  return text("world rank ", world_rank, " has left: it ended or called shutdown()");
}

}  // namespace pycomm
