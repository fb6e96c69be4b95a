// How a run of elements is cut into parts: sizes differ by at most one, the larger parts first (as
// numpy.array_split does). Chunks of a buffer and shards of an optimizer use the same cut.
#pragma once

#include <cstdint>

namespace pycomm {

struct Partition {
  std::int64_t count = 0;
  std::int64_t parts = 1;

  std::int64_t size(std::int64_t part) const { return count / parts + (part < count % parts ? 1 : 0); }
  std::int64_t offset(std::int64_t part) const {
    const std::int64_t extra = count % parts;
    return part * (count / parts) + (part < extra ? part : extra);
  }
  std::int64_t largest() const { return size(0); }
};

}  // namespace pycomm
