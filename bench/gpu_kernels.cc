// pycomm_gpu_bench: the element-wise kernels on card 0 beside a copy there, in GB/s of bytes read and
// written. Medians of rounds of launches; small sizes show the cost of a launch, large ones that of memory.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <vector>

#include "gpu_memory.h"
#include "kernels/stream_kernels.h"

namespace {

using namespace pycomm;

constexpr int kRounds = 15;

double median_us(const std::function<void()>& launch, int launches) {
  std::vector<double> times;
  for (int round = 0; round <= kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < launches; ++i) launch();
    wait_for(gpu_stream());
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - start;
    if (round > 0) times.push_back(taken.count() / launches);  // the first loads the kernel
  }
  std::nth_element(times.begin(), times.begin() + kRounds / 2, times.end());
  return times[kRounds / 2];
}

void measure(std::int64_t count) {
  const GpuMemory a(static_cast<std::size_t>(8 * count)), b(a.bytes()), dst(a.bytes());
  Stream& stream = gpu_stream();
  const StreamKernels& k = cuda_device().kernels();
  constexpr int kSum = index_of(ReduceOp::sum), kF32 = index_of(DType::f32), kF16 = index_of(DType::f16);
  const int launches = count < (1 << 22) ? 200 : 20;
  const auto row = [&](const char* name, int bytes_per_element, const std::function<void()>& launch) {
    const double us = median_us(launch, launches);
    const auto bytes = static_cast<double>(count * bytes_per_element);
    std::printf("%12lld  %-28s %10.1f us %8.1f GB/s\n", static_cast<long long>(count), name, us,
                bytes / us / 1e3);
  };
  const std::byte *const x = a.data(), *const y = b.data();
  std::byte* const to = dst.data();
  row("copy of f32", 8, [&] { stream.copy(to, x, static_cast<std::size_t>(4 * count)); });
  row("sum of f32", 12, [&] { k.reduce[kF32][kSum](to, x, y, count, {}, stream); });
  row("sum of f32, off by one", 12, [&] { k.reduce[kF32][kSum](to + 4, x + 8, y, count, {}, stream); });
  row("sum of f16", 6, [&] { k.reduce[kF16][kSum](to, x, y, count, {}, stream); });
  row("f32 scaled", 8, [&] { k.scale[kF32](to, x, count, 0.5, stream); });
  row("f32 to f16", 6, [&] { k.cast[kF32][kF16](to, x, count, 0.5, stream); });
  row("f16 added to f32", 10, [&] { k.decode_reduce[0][1][kSum](to, x, y, count, {}, stream); });
}

}  // namespace

int main() {
  try {
    for (const std::int64_t count : {1 << 12, 1 << 18, 1 << 22, 1 << 26, 1 << 28}) measure(count);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pycomm_gpu_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
