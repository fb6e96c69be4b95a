// The element-wise loops of kernels.h over a device's memory, enqueued on a stream. The same table but for
// loops past the caches, the same numbers, bit for bit, and the same freedom of alignment; the memory must
// live until the stream has come past. Throws TransportError when a launch is refused.
#pragma once

#include <cstdint>

#include "core/device.h"
#include "core/dtype.h"
#include "kernels/kernels.h"

namespace pycomm {

struct StreamKernels {
  using Reduce = void (*)(void* dst, const void* a, const void* b, std::int64_t count, Scales scales,
                          Stream& stream);
  Reduce reduce[kDTypeCount][kKernelOpCount];
  using Scale = void (*)(void* dst, const void* src, std::int64_t count, double factor, Stream& stream);
  Scale scale[kDTypeCount];
  using Divide = void (*)(void* dst, const void* src, std::int64_t count, std::int64_t divisor,
                          Stream& stream);
  Divide divide[kDTypeCount];
  using Cast = void (*)(void* dst, const void* src, std::int64_t count, double factor, Stream& stream);
  Cast cast[4][4];
  using DecodeReduce = void (*)(void* dst, const void* acc, const void* wire, std::int64_t count,
                                Scales scales, Stream& stream);
  DecodeReduce decode_reduce[2][2][kKernelOpCount];
};

}  // namespace pycomm
