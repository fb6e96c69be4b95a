// The element-wise kernels on a card: equal to the processor's scalar table bit for bit.
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "device/cuda_device.h"
#include "gpu_memory.h"
#include "kernel_cases.h"
#include "kernels_through.h"

namespace pycomm {
namespace {

// Operands lie on the card as far from a multiple of 64 as they do here.
struct OnCard {
  static const StreamKernels& table() { return cuda_device().kernels(); }

  template <class Run>
  static void call(Placed dst, Placed a, Placed b, Run run) {
    static GpuMemory memory[3] = {GpuMemory(kRoom), GpuMemory(kRoom), GpuMemory(kRoom)};
    Stream& stream = gpu_stream();
    const auto place = [&](const Placed& operand, GpuMemory& at) {
      if (!operand.data) return static_cast<std::byte*>(nullptr);
      std::byte* const there = at.data() + reinterpret_cast<std::uintptr_t>(operand.data) % 64;
      if (operand.bytes > 0) stream.copy(there, operand.data, operand.bytes);
      return there;
    };
    std::byte* const x = place(a, memory[0]);
    std::byte* const y = place(b, memory[1]);
    std::byte* result = place(dst, memory[2]);
    if (dst.data == a.data) result = x;
    if (dst.data == b.data) result = y;
    run(result, x, y, stream);
    if (dst.bytes > 0) stream.copy(const_cast<void*>(dst.data), result, dst.bytes);
    wait_for(stream);
  }

  static constexpr std::size_t kRoom = std::size_t{1} << 20;
};

const Kernels& table() {
  static const Kernels table = KernelsThrough<OnCard>::make("cuda");
  return table;
}

}  // namespace

TEST(kernels_on_a_card_equal_scalar_at_every_length_and_alignment) {
  const FloatMode mode;
  for (const Case& c : cases()) compare_with_scalar(table(), c);
}

TEST(kernels_on_a_card_cast_all_16_bit_patterns_as_scalar) {
  const FloatMode mode;
  compare_casts_of_all_16_bit_patterns(table());
}

// More than all threads that a card runs at once take in one go, and two billion bytes and some.
TEST(kernels_on_a_card_go_round_large_arrays) {
  constexpr std::int64_t kCount = (std::int64_t{1} << 29) + 12345;
  GpuMemory memory(4 * static_cast<std::size_t>(kCount));
  std::vector<float> values(static_cast<std::size_t>(kCount));
  for (std::int64_t i = 0; i < kCount; ++i) values[i] = static_cast<float>(i % 1001);
  Stream& stream = gpu_stream();
  stream.copy(memory.data(), values.data(), memory.bytes());
  const auto sum = cuda_device().kernels().reduce[index_of(DType::f32)][index_of(ReduceOp::sum)];
  sum(memory.data(), memory.data(), memory.data(), kCount, {1.0, 0.5}, stream);
  std::vector<float> result(values.size());
  stream.copy(result.data(), memory.data(), memory.bytes());
  wait_for(stream);
  CHECK(result == values);
}

}  // namespace pycomm
