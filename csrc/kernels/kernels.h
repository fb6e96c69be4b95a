// Element-wise loops over host memory: one table of function pointers per instruction set, chosen once at
// run time. Pointers need only the alignment of their element type's byte (any address is fine); counts are
// elements and may be 0; `dst` may equal an input exactly, and overlaps nothing partially.
//
// Numbers. f16 and bf16 are widened to f32, computed there, rounded once to nearest even. Scales are double,
// converted to the accumulation type (f64 for f64, else f32) and applied there; a scale of exactly 1 costs
// nothing and changes no bit. min and max propagate NaN and order -0 < +0. Every NaN computed is the
// canonical quiet one of its type (0x7e00, 0x7fc0, 0x7fc00000, 0x7ff8000000000000); only what is copied, by
// factor 1 to the same type, keeps its payload. Integers wrap. Denormals are kept, whatever MXCSR the calling
// thread has (see FloatMode). All tables give the same bits as the scalar one.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace pycomm {

struct Scales {
  double a = 1.0;       // applied to operand a before the reduction
  double result = 1.0;  // applied to the result
};

struct Kernels {
  const char* isa;  // "scalar", "avx2", "avx512"

  // dst = ((a * scales.a) op b) * scales.result. Integers ignore scales.
  using Reduce = void (*)(void* dst, const void* a, const void* b, std::int64_t count, Scales scales);
  Reduce reduce[kDTypeCount][kKernelOpCount];
  // The same past the caches, as `stream` below; dst is no operand. Null for f16 and bf16.
  Reduce reduce_streamed[kDTypeCount][kKernelOpCount];

  // dst = src * factor, floating types only (null for integers).
  using Scale = void (*)(void* dst, const void* src, std::int64_t count, double factor);
  Scale scale[kDTypeCount];

  // dst = src / divisor, truncating toward zero, integer types only (null for floating types). divisor > 0.
  using Divide = void (*)(void* dst, const void* src, std::int64_t count, std::int64_t divisor);
  Divide divide[kDTypeCount];

  // dst = (to) (src * factor) between floating types, rounded once (f64 to f16 or bf16 too); [from][to].
  // Encoding a wire is cast[f32][f16], decoding it cast[f16][f32].
  using Cast = void (*)(void* dst, const void* src, std::int64_t count, double factor);
  Cast cast[4][4];

  // dst = ((acc * scales.a) op decode(wire)) * scales.result, wire f16 or bf16, dst and acc f32 or f64;
  // [wire is bf16][acc is f32][op].
  using DecodeReduce = void (*)(void* dst, const void* acc, const void* wire, std::int64_t count,
                                Scales scales);
  DecodeReduce decode_reduce[2][2][kKernelOpCount];

  // Copies past the caches, for memory that nobody reads soon: what is overwritten need not be fetched first.
  // `dst` overlaps `src` nowhere. stream_fence() must follow before other threads are told.
  using Stream = void (*)(void* dst, const void* src, std::int64_t bytes);
  Stream stream;
};

// Orders what this thread has streamed before its later stores.
void stream_fence();

// The tables this machine can run, scalar first, the widest last.
const std::vector<const Kernels*>& available_kernels();

// The table in use: the widest, or the one named by PYCOMM_ISA (an unknown or unavailable name throws
// InvalidArgument listing the available ones). Decided at the first call.
const Kernels& kernels();
const Kernels& kernels_named(std::string_view isa);

// Puts the thread's floating point control to round-to-nearest with denormals kept, and restores it: torch
// can set flush-to-zero per thread. Held by whoever calls kernels.
class FloatMode {
 public:
  FloatMode();
  ~FloatMode();
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  unsigned saved_;
};

}  // namespace pycomm
