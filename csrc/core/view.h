// A typed run of elements in memory that somebody else owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/dtype.h"

namespace pycomm {

struct View {
  std::byte* data = nullptr;
  std::int64_t count = 0;  // elements
  DType dtype = DType::u8;

  bool operator==(const View&) const = default;
  std::int64_t bytes() const { return count * size_of(dtype); }
  std::byte* at(std::int64_t element) const { return data + element * size_of(dtype); }
  View slice(std::int64_t first, std::int64_t length) const { return {at(first), length, dtype}; }
  std::span<std::byte> span() const { return {data, static_cast<std::size_t>(bytes())}; }
};

}  // namespace pycomm
