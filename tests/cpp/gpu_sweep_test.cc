// What the threads of a GPU do in element-wise loops, run here one thread after the other: equal to the
// scalar table bit for bit, at every length and alignment. What is left to a card is that the threads run,
// and that its arithmetic is IEEE 754's (tests/gpu).
#include "kernels/gpu_sweep.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "kernel_cases.h"
#include "kernels/gpu_table.h"
#include "kernels_through.h"

namespace pycomm {
namespace {

constexpr std::int64_t kThreads = 5;

// Of no card.
class Immediate final : public Stream {
 public:
  void copy(void* to, const void* from, std::size_t bytes) override { std::memmove(to, from, bytes); }
  void mark(Event&) override {}
  void wait_for(Event&) override {}
  void* handle() const override { return nullptr; }
  int card() const override { return 0; }
};

struct OneByOne {
  template <class Operation>
  static void run(void* dst, const void* a, const void* b, std::int64_t count, Operation operation, Stream&) {
    const Cut cut = cut_of<Operation>(dst, a, b, count);
    for (std::int64_t thread = 0; thread < kThreads; ++thread)
      sweep_thread(dst, a, b, cut, operation, thread, kThreads);
  }
};

struct Here {
  static const StreamKernels& table() {
    static const StreamKernels table = make_stream_kernels<OneByOne>();
    return table;
  }
  template <class Run>
  static void call(Placed dst, Placed a, Placed b, Run run) {
    Immediate stream;
    run(const_cast<void*>(dst.data), a.data, b.data, stream);
  }
};

const Kernels& table() {
  static const Kernels table = KernelsThrough<Here>::make("GPU threads");
  return table;
}

}  // namespace

TEST(threads_of_a_gpu_equal_scalar_at_every_length_and_alignment) {
  const FloatMode mode;
  for (const Case& c : cases()) compare_with_scalar(table(), c);
}

TEST(threads_of_a_gpu_cast_all_16_bit_patterns_as_scalar) {
  const FloatMode mode;
  compare_casts_of_all_16_bit_patterns(table());
}

// Conversions on a card turn any NaN into one of all ones.
TEST(store_makes_every_nan_canonical_whatever_converting_made_of_it) {
  const float f32 = bits_as<float>(std::uint32_t{0x7fffffff});
  const double f64 = bits_as<double>(std::uint64_t{0xffffffffffffffff});
  std::uint16_t half = 0;
  std::uint32_t single = 0;
  store<Portable, BF16, float, 1>(&half, 0, f32);
  CHECK_EQ(half, 0x7fc0);
  store<Portable, F16, float, 1>(&half, 0, f32);
  CHECK_EQ(half, 0x7e00);
  store<Portable, BF16, double, 1>(&half, 0, f64);
  CHECK_EQ(half, 0x7fc0);
  store<Portable, F16, double, 1>(&half, 0, f64);
  CHECK_EQ(half, 0x7e00);
  store<Portable, float, double, 1>(&single, 0, f64);
  CHECK_EQ(single, 0x7fc00000u);
}

TEST(blocks_are_used_wherever_operands_come_to_lie_together) {
  using Sum = Reduction<ReduceOp::sum, float, float>;
  using Decode = Reduction<ReduceOp::sum, float, F16>;
  alignas(64) static std::byte memory[3][256];
  const auto blocks = [](auto operation, int dst, int a, int b, std::int64_t count) {
    return cut_of<decltype(operation)>(memory[0] + dst, memory[1] + a, memory[2] + b, count);
  };
  CHECK_EQ(blocks(Sum{1, 1}, 0, 0, 0, 16).blocks, 4);
  CHECK_EQ(blocks(Sum{1, 1}, 4, 4, 4, 16).head, 3);
  CHECK_EQ(blocks(Sum{1, 1}, 4, 4, 4, 16).blocks, 3);
  CHECK_EQ(blocks(Sum{1, 1}, 4, 20, 36, 16).blocks, 3);
  CHECK_EQ(blocks(Sum{1, 1}, 4, 8, 4, 16).blocks, 0);  // never together
  CHECK_EQ(blocks(Sum{1, 1}, 1, 1, 1, 16).blocks, 0);  // on no element's boundary
  CHECK_EQ(blocks(Sum{1, 1}, 4, 4, 4, 6).blocks, 0);   // too short
  CHECK_EQ(blocks(Decode{1, 1}, 0, 0, 0, 16).blocks, 2);
  CHECK_EQ(blocks(Decode{1, 1}, 8, 8, 4, 16).head, 6);
}

}  // namespace pycomm
