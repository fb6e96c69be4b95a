// The table of stream_kernels.h for CUDA: gpu_sweep.h says what a thread does, this file starts them.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda_check.cuh"
#include "kernels/gpu_sweep.h"
#include "kernels/stream_kernels.h"

namespace pycomm {
namespace {

constexpr int kThreads = 256;
constexpr int kGroups = 8;  // of threads for each multiprocessor: as many as it runs at once

template <class Operation>
__global__ void __launch_bounds__(kThreads)
    sweep(void* dst, const void* a, const void* b, Cut cut, Operation operation) {
  sweep_thread(dst, a, b, cut, operation, static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x,
               static_cast<std::int64_t>(gridDim.x) * kThreads);
}

int multiprocessors(int card) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, card),
             "counting multiprocessors");
  return count;
}

template <class Operation>
void launch(void* dst, const void* a, const void* b, std::int64_t count, Operation operation,
            Stream& stream) {
  if (count <= 0) return;
  const CurrentCard current(stream.card());
  const Cut cut = cut_of<Operation>(dst, a, b, count);
  const std::int64_t work = std::max(cut.blocks, count - cut.blocks * Sizes<Operation>::kBlock);
  const std::int64_t needed = (work + kThreads - 1) / kThreads;
  const auto groups = static_cast<unsigned>(
      std::min<std::int64_t>(needed, std::int64_t{kGroups} * multiprocessors(stream.card())));
  sweep<<<groups, kThreads, 0, static_cast<cudaStream_t>(stream.handle())>>>(dst, a, b, cut, operation);
  check_cuda(cudaGetLastError(), "launching an element-wise kernel");
}

template <ReduceOp op, class T, class Other = T>
void reduce(void* dst, const void* a, const void* b, std::int64_t count, Scales scales, Stream& stream) {
  using C = Computed<T>;
  Reduction<op, T, Other> operation{C{1}, C{1}};
  if constexpr (std::is_floating_point_v<C>)
    operation = {static_cast<C>(scales.a), static_cast<C>(scales.result)};
  launch(dst, a, b, count, operation, stream);
}

template <class From, class To>
void cast(void* dst, const void* src, std::int64_t count, double factor, Stream& stream) {
  if (std::is_same_v<From, To> && factor == 1.0) {  // NaNs keep their payload
    if (dst != src && count > 0) stream.copy(dst, src, static_cast<std::size_t>(count) * sizeof(From));
    return;
  }
  using Operation = Conversion<From, To>;
  launch(dst, src, src, count, Operation{static_cast<typename Operation::C>(factor)}, stream);
}

template <class T>
void divide(void* dst, const void* src, std::int64_t count, std::int64_t divisor, Stream& stream) {
  launch(dst, src, src, count, Division<T>{divisor, static_cast<double>(divisor)}, stream);
}

template <ReduceOp op>
void add_reductions(StreamKernels& table) {
  constexpr int i = index_of(op);
  for_each_type<op>([&]<class T>(DType dtype, T) { table.reduce[index_of(dtype)][i] = reduce<op, T>; });
  table.decode_reduce[0][0][i] = reduce<op, double, F16>;
  table.decode_reduce[0][1][i] = reduce<op, float, F16>;
  table.decode_reduce[1][0][i] = reduce<op, double, BF16>;
  table.decode_reduce[1][1][i] = reduce<op, float, BF16>;
}

template <class From>
void add_casts(StreamKernels& table, DType from) {
  table.cast[index_of(from)][index_of(DType::f64)] = cast<From, double>;
  table.cast[index_of(from)][index_of(DType::f32)] = cast<From, float>;
  table.cast[index_of(from)][index_of(DType::f16)] = cast<From, F16>;
  table.cast[index_of(from)][index_of(DType::bf16)] = cast<From, BF16>;
  table.scale[index_of(from)] = cast<From, From>;
}

StreamKernels make_table() {
  StreamKernels table{};
  add_reductions<ReduceOp::sum>(table);
  add_reductions<ReduceOp::prod>(table);
  add_reductions<ReduceOp::min>(table);
  add_reductions<ReduceOp::max>(table);
  add_casts<double>(table, DType::f64);
  add_casts<float>(table, DType::f32);
  add_casts<F16>(table, DType::f16);
  add_casts<BF16>(table, DType::bf16);
  table.divide[index_of(DType::i64)] = divide<std::int64_t>;
  table.divide[index_of(DType::i32)] = divide<std::int32_t>;
  table.divide[index_of(DType::u8)] = divide<std::uint8_t>;
  table.divide[index_of(DType::i8)] = divide<std::int8_t>;
  return table;
}

}  // namespace

const StreamKernels& cuda_kernels() {
  static const StreamKernels table = make_table();
  return table;
}

}  // namespace pycomm
