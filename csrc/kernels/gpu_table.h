// The table of stream_kernels.h, of the operations in gpu_sweep.h. How one of them runs is Run's to say:
//   static void Run::run(void* dst, const void* a, const void* b, std::int64_t count, Operation, Stream&)
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/gpu_sweep.h"
#include "kernels/stream_kernels.h"

namespace pycomm {
namespace {

template <class Run, ReduceOp op, class T, class Other = T>
void reduce(void* dst, const void* a, const void* b, std::int64_t count, Scales scales, Stream& stream) {
  using C = Computed<T>;
  Reduction<op, T, Other> operation{C{1}, C{1}};
  if constexpr (std::is_floating_point_v<C>)
    operation = {static_cast<C>(scales.a), static_cast<C>(scales.result)};
  Run::run(dst, a, b, count, operation, stream);
}

template <class Run, class From, class To>
void cast(void* dst, const void* src, std::int64_t count, double factor, Stream& stream) {
  if (std::is_same_v<From, To> && factor == 1.0) {  // NaNs keep their payload
    if (dst != src && count > 0) stream.copy(dst, src, static_cast<std::size_t>(count) * sizeof(From));
    return;
  }
  using Operation = Conversion<From, To>;
  Run::run(dst, src, src, count, Operation{static_cast<typename Operation::C>(factor)}, stream);
}

template <class Run, class T>
void divide(void* dst, const void* src, std::int64_t count, std::int64_t divisor, Stream& stream) {
  Run::run(dst, src, src, count, Division<T>{divisor, static_cast<double>(divisor)}, stream);
}

template <class Run, ReduceOp op>
void add_reductions(StreamKernels& table) {
  constexpr int i = index_of(op);
  for_each_type<op>([&]<class T>(DType dtype, T) { table.reduce[index_of(dtype)][i] = reduce<Run, op, T>; });
  table.decode_reduce[0][0][i] = reduce<Run, op, double, F16>;
  table.decode_reduce[0][1][i] = reduce<Run, op, float, F16>;
  table.decode_reduce[1][0][i] = reduce<Run, op, double, BF16>;
  table.decode_reduce[1][1][i] = reduce<Run, op, float, BF16>;
}

template <class Run, class From>
void add_casts(StreamKernels& table, DType from) {
  table.cast[index_of(from)][index_of(DType::f64)] = cast<Run, From, double>;
  table.cast[index_of(from)][index_of(DType::f32)] = cast<Run, From, float>;
  table.cast[index_of(from)][index_of(DType::f16)] = cast<Run, From, F16>;
  table.cast[index_of(from)][index_of(DType::bf16)] = cast<Run, From, BF16>;
  table.scale[index_of(from)] = cast<Run, From, From>;
}

template <class Run>
StreamKernels make_stream_kernels() {
  StreamKernels table{};
  add_reductions<Run, ReduceOp::sum>(table);
  add_reductions<Run, ReduceOp::prod>(table);
  add_reductions<Run, ReduceOp::min>(table);
  add_reductions<Run, ReduceOp::max>(table);
  add_casts<Run, double>(table, DType::f64);
  add_casts<Run, float>(table, DType::f32);
  add_casts<Run, F16>(table, DType::f16);
  add_casts<Run, BF16>(table, DType::bf16);
  table.divide[index_of(DType::i64)] = divide<Run, std::int64_t>;
  table.divide[index_of(DType::i32)] = divide<Run, std::int32_t>;
  table.divide[index_of(DType::u8)] = divide<Run, std::uint8_t>;
  table.divide[index_of(DType::i8)] = divide<Run, std::int8_t>;
  return table;
}

}  // namespace
}  // namespace pycomm
