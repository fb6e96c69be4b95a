// Sums of several operands: streamed results are those of the cached ones, and nothing beside them is
// written.
#include <cstring>
#include <vector>

#include "check.h"
#include "engine/arithmetic.h"
#include "kernels/kernels.h"

namespace pycomm {
namespace {

using Bytes = std::vector<std::byte>;
constexpr std::int64_t kMargin = 64;

Bytes small_numbers(DType dtype, std::int64_t count, int seed) {
  Bytes out(static_cast<std::size_t>(count * size_of(dtype)));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>((i * 7 + seed) % 64);
  return out;
}

}  // namespace

TEST(streamed_results_equal_cached_ones) {
  const FloatMode mode;
  for (const DType dtype :
       {DType::f64, DType::f32, DType::f16, DType::bf16, DType::i64, DType::i32, DType::u8, DType::i8})
    for (const std::int64_t count : {0, 1, 63, 2048, 4999})
      for (const std::size_t operands : {1, 2, 3})
        for (const int shift : {0, 1}) {
          std::vector<Bytes> sources;
          std::vector<Operand> terms;
          for (std::size_t i = 0; i < operands; ++i)
            sources.push_back(small_numbers(dtype, count, static_cast<int>(i)));
          for (const Bytes& source : sources) terms.push_back({source.data()});
          const std::size_t offset = kMargin + shift * size_of(dtype);
          Bytes cached(offset + count * size_of(dtype) + kMargin, std::byte{0x5a}), streamed = cached;
          reduce_operands({cached.data() + offset, count, dtype}, terms, ReduceOp::sum, {.divisor = 1});
          reduce_operands({streamed.data() + offset, count, dtype}, terms, ReduceOp::sum, {.divisor = 1},
                          Results::streamed);
          CHECK_EQ(cached == streamed, true, name_of(dtype), ", ", count, " elements, ", operands,
                   " operands");
        }
}

}  // namespace pycomm
