#include "engine/arithmetic.h"

#include <algorithm>
#include <cstring>
#include <fstream>

#include "core/error.h"
#include "kernels/kernels.h"

namespace pycomm {
namespace {

constexpr std::int64_t kTile = 2048;  // elements; 16 kB of f64
using Tile = std::byte[kTile * 8];

void divide(const View& dst, std::int64_t divisor) {
  if (divisor != 1) kernels().divide[index_of(dst.dtype)](dst.data, dst.data, dst.count, divisor);
}

// One tile of the sum of 16-bit operands, in f32, from left to right.
void sum_half_tile(std::byte* sum, const View& tile, std::span<const Operand> operands, std::int64_t first,
                   ReduceOp op) {
  alignas(64) Tile term;
  const Kernels& k = kernels();
  const int half = index_of(tile.dtype);
  const int wide = index_of(DType::f32);
  const int is_bf16 = tile.dtype == DType::bf16 ? 1 : 0;
  const auto source = [&](std::size_t i) { return operands[i].data + first * 2; };
  k.cast[half][wide](sum, source(0), tile.count, operands[0].scale);
  for (std::size_t i = 1; i < operands.size(); ++i) {
    if (operands[i].scale == 1.0) {
      k.decode_reduce[is_bf16][1][index_of(op)](sum, sum, source(i), tile.count, {});
    } else {
      k.cast[half][wide](term, source(i), tile.count, operands[i].scale);
      k.reduce[wide][index_of(op)](sum, sum, term, tile.count, {});
    }
  }
}

void reduce_half_tile(const View& dst, std::span<const Operand> operands, std::int64_t first, ReduceOp op,
                      double scale) {
  alignas(64) Tile sum;
  sum_half_tile(sum, dst, operands, first, op);
  kernels().cast[index_of(DType::f32)][index_of(dst.dtype)](dst.data, sum, dst.count, scale);
}

void reduce_plain_tile(const View& dst, std::span<const Operand> operands, std::int64_t first, ReduceOp op,
                       Finish finish, Results results) {
  alignas(64) Tile sum;
  alignas(64) Tile term;
  const Kernels& k = kernels();
  const int type = index_of(dst.dtype);
  const auto source = [&](std::size_t i) { return operands[i].data + first * size_of(dst.dtype); };
  const std::byte* left = source(0);
  Scales scales{.a = operands[0].scale};
  for (std::size_t i = 1; i < operands.size(); ++i) {
    const std::byte* right = source(i);
    if (operands[i].scale != 1.0) {
      k.scale[type](term, right, dst.count, operands[i].scale);
      right = term;
    }
    const bool last = i + 1 == operands.size();
    if (last) scales.result = finish.scale;
    std::byte* to = last ? dst.data : sum;
    const auto& reduce = last && results == Results::streamed ? k.reduce_streamed : k.reduce;
    reduce[type][index_of(op)](to, left, right, dst.count, scales);
    left = sum;
    scales.a = 1.0;
  }
  divide(dst, finish.divisor);
}

// One tile of a sum by halves, of two or more operands, in the type that sums are computed in.
void sum_pairwise_tile(std::byte* sum, const View& tile, std::span<const Operand> operands,
                       std::int64_t first, ReduceOp op) {
  const DType computed = is_half(tile.dtype) ? DType::f32 : tile.dtype;
  if (operands.size() == 2 && is_half(tile.dtype)) return sum_half_tile(sum, tile, operands, first, op);
  if (operands.size() == 2)
    return reduce_plain_tile({sum, tile.count, computed}, operands, first, op, {}, Results::cached);
  alignas(64) Tile right;
  const std::size_t half = operands.size() / 2;
  sum_pairwise_tile(sum, tile, operands.first(half), first, op);
  sum_pairwise_tile(right, tile, operands.subspan(half), first, op);
  kernels().reduce[index_of(computed)][index_of(op)](sum, sum, right, tile.count, {});
}

}  // namespace

void reduce_pairwise(const View& dst, std::span<const Operand> operands, ReduceOp op, Finish finish,
                     Results results) {
  if (operands.size() <= 2) return reduce_operands(dst, operands, op, finish, results);
  if (is_half(dst.dtype) || finish.divisor != 1) results = Results::cached;
  const std::size_t half = operands.size() / 2;
  alignas(64) Tile left;
  alignas(64) Tile right;
  const int computed = index_of(is_half(dst.dtype) ? DType::f32 : dst.dtype);
  for (std::int64_t first = 0; first < dst.count; first += kTile) {
    const View tile = dst.slice(first, std::min(kTile, dst.count - first));
    sum_pairwise_tile(left, tile, operands.first(half), first, op);
    sum_pairwise_tile(right, tile, operands.subspan(half), first, op);
    if (is_half(dst.dtype)) {
      kernels().reduce[computed][index_of(op)](left, left, right, tile.count, {});
      kernels().cast[computed][index_of(dst.dtype)](tile.data, left, tile.count, finish.scale);
    } else {
      const auto& reduce = results == Results::streamed ? kernels().reduce_streamed : kernels().reduce;
      reduce[computed][index_of(op)](tile.data, left, right, tile.count, {.result = finish.scale});
    }
  }
  if (results == Results::streamed) return stream_fence();
  divide(dst, finish.divisor);
}

// Linux says what one cache holds; sysconf() may add up those of a whole socket.
std::int64_t last_cache_bytes() {
  static const std::int64_t bytes = [] {
    constexpr std::int64_t kUsual = std::int64_t{32} << 20;
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
    std::int64_t size = 0;
    char unit = ' ';
    if (!(file >> size >> unit) || size <= 0) return kUsual;
    return size << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0);
  }();
  return bytes;
}

void copy_operand(const View& dst, Operand operand, Finish finish, Results results) {
  const double scale = operand.scale * finish.scale;
  if (scale != 1.0) {
    kernels().scale[index_of(dst.dtype)](dst.data, operand.data, dst.count, scale);
  } else if (dst.data != operand.data && dst.count > 0) {
    if (results == Results::streamed && finish.divisor == 1) {
      kernels().stream(dst.data, operand.data, dst.bytes());
      return stream_fence();
    }
    std::memmove(dst.data, operand.data, static_cast<std::size_t>(dst.bytes()));
  }
  divide(dst, finish.divisor);
}

void reduce_pair(const View& dst, Operand a, const std::byte* b, ReduceOp op, Finish finish) {
  kernels().reduce[index_of(dst.dtype)][index_of(op)](dst.data, a.data, b, dst.count,
                                                      {a.scale, finish.scale});
  divide(dst, finish.divisor);
}

void reduce_operands(const View& dst, std::span<const Operand> operands, ReduceOp op, Finish finish,
                     Results results) {
  PYCOMM_DCHECK(!operands.empty());
  if (operands.size() == 1) return copy_operand(dst, operands[0], finish, results);
  if (operands.size() == 2 && operands[1].scale == 1.0 && results == Results::cached)
    return reduce_pair(dst, operands[0], operands[1].data, op, finish);
  if (is_half(dst.dtype) || finish.divisor != 1) results = Results::cached;
  for (std::int64_t first = 0; first < dst.count; first += kTile) {
    const View tile = dst.slice(first, std::min(kTile, dst.count - first));
    if (is_half(dst.dtype)) {
      reduce_half_tile(tile, operands, first, op, finish.scale);
    } else {
      reduce_plain_tile(tile, operands, first, op, finish, results);
    }
  }
  if (results == Results::streamed) stream_fence();
}

}  // namespace pycomm
