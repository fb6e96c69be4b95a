// Sums of several contributions at once, for the executor. Works in tiles that stay in the first-level cache,
// so the accumulator costs no memory traffic, and any source may be the destination.
#pragma once

#include <span>

#include "core/view.h"

namespace pycomm {

// One operand of a reduction: where it lies, and what it is multiplied by first.
struct Operand {
  const std::byte* data = nullptr;
  double scale = 1.0;
};

// dst = ((operands[0] op operands[1]) op ...) * result_scale, in that order. 16-bit types accumulate in f32
// and are rounded once. Integers take no scales; a divisor above 1 divides the result, truncating.
struct Finish {
  double scale = 1.0;
  std::int64_t divisor = 1;
};
// Streamed results go past the caches where there is a kernel for that: for dst that is read by nobody soon
// and is no operand.
enum class Results { cached, streamed };
// Size of this processor's last cache.
std::int64_t last_cache_bytes();
void reduce_operands(const View& dst, std::span<const Operand> operands, ReduceOp op, Finish finish,
                     Results results = Results::cached);

// The same in the order ((a op b) op (c op d)): halves of the operands, of which there is a power of two.
void reduce_pairwise(const View& dst, std::span<const Operand> operands, ReduceOp op, Finish finish,
                     Results results = Results::cached);

// dst = operand (scaled), finished. dst may be the operand.
void copy_operand(const View& dst, Operand operand, Finish finish, Results results = Results::cached);

// dst = (a (+) b), a scaled first, finished.
void reduce_pair(const View& dst, Operand a, const std::byte* b, ReduceOp op, Finish finish);

}  // namespace pycomm
