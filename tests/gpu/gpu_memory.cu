#include "gpu_memory.h"

#include <cuda_runtime.h>

#include "kernels/cuda_check.cuh"

namespace pycomm {

GpuMemory::GpuMemory(std::size_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes), "allocating");
  data_ = static_cast<std::byte*>(memory);
}

GpuMemory::~GpuMemory() {
  static_cast<void>(cudaFree(data_));
}

}  // namespace pycomm
