// The table of stream_kernels.h for CUDA: gpu_sweep.h says what a thread does, this file starts them.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda_check.cuh"
#include "kernels/gpu_table.h"

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

struct OnCard {
  template <class Operation>
  static void run(void* dst, const void* a, const void* b, std::int64_t count, Operation operation,
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
};

}  // namespace

const StreamKernels& cuda_kernels() {
  static const StreamKernels table = make_stream_kernels<OnCard>();
  return table;
}

}  // namespace pycomm
