// Every entry of every instruction set's table: against the scalar table bit for bit, and the results
// themselves against oracles that share no code with the kernels.
#include "kernels/kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "check.h"
#include "core/error.h"
#include "float_format.h"
#include "kernel_cases.h"

namespace pycomm {
namespace {

std::uint64_t bits_of(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// What the tables promise of one element, in plain double arithmetic. f32 sums and products are exact or
// correctly rounded there: a double holds the product of two f32, and for a sum is wide enough that rounding
// twice is innocuous.
double reference(ReduceOp op, double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<double>::quiet_NaN();
  const bool a_first = a < b || (a == b && std::signbit(a));
  if (op == ReduceOp::sum) return a + b;
  if (op == ReduceOp::prod) return a * b;
  return a_first == (op == ReduceOp::min) ? a : b;
}

// As reference(), rounded to f32 after each step where that is the accumulation type.
double reference(ReduceOp op, double a, double b, Scales scales, bool wide) {
  const Format f32 = format_of(DType::f32);
  const auto rounded = [&](double x) { return wide ? x : f32.value(f32.nearest(x)); };
  const double before = rounded(scales.a);
  const double after = rounded(scales.result);
  return rounded(rounded(reference(op, rounded(a * before), b)) * after);
}

void check_reduction(const Case& c, ReduceOp op, Scales scales) {
  Random random(11);
  const bool wide = c.a == DType::f64;
  const Bits a = random_values(c.a, 3000, random);
  const Bits b = random_values(c.b, 3000, random);
  const Bits out = run(*available_kernels().front(), c, a, b);
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = format_of(c.a).value(a[i]);
    const double y = format_of(c.b).value(b[i]);
    const std::uint64_t expected = format_of(c.dst).nearest(reference(op, x, y, scales, wide));
    CHECK_EQ(out[i], expected, c.name, ": ", x, ", ", y);
  }
}

// Where rounding to `to` is hardest: its values, the ties between them and the neighbours of the ties in
// `from`.
Bits around_ties(DType from, DType to) {
  const Format wide = format_of(from);
  const Format narrow = format_of(to);
  Bits out;
  const auto add = [&](double x) {
    const std::uint64_t bits = wide.nearest(x);
    for (std::uint64_t near : {bits - 1, bits, bits + 1}) {
      out.push_back(near);
      out.push_back(near | wide.sign());
    }
  };
  for (std::uint64_t low = 0; low < narrow.infinity(); ++low) {
    if (low > 0) add(narrow.edge(low));
    add((narrow.edge(low) + narrow.edge(low + 1)) / 2);
  }
  add(narrow.edge(narrow.infinity()));
  return out;
}

void check_cast(DType from, DType to, const Bits& inputs) {
  const Case c = cast_cases(from, to).front();
  Bits expected;
  for (std::uint64_t x : inputs) expected.push_back(format_of(to).nearest(format_of(from).value(x)));
  for (const Kernels* table : available_kernels()) {
    const Bits out = run(*table, c, inputs, inputs);
    for (std::size_t i = 0; i < inputs.size(); ++i)
      CHECK_EQ(out[i], expected[i], table->isa, " ", c.name, " of ", format_of(from).value(inputs[i]));
  }
}

std::int64_t as_signed(std::uint64_t bits, DType dtype) {
  switch (dtype) {
    case DType::i64:
      return static_cast<std::int64_t>(bits);
    case DType::i32:
      return static_cast<std::int32_t>(bits);
    case DType::i8:
      return static_cast<std::int8_t>(bits);
    default:
      return static_cast<std::int64_t>(bits);
  }
}

}  // namespace

TEST(kernel_tables_are_complete) {
  CHECK_EQ(std::string(available_kernels().front()->isa), "scalar");
  for (const Kernels* table : available_kernels()) {
    for (DType dtype : kDTypes) {
      const int i = index_of(dtype);
      for (ReduceOp op : kOps) CHECK(table->reduce[i][index_of(op)] != nullptr);
      for (ReduceOp op : kOps) CHECK_EQ(table->reduce_streamed[i][index_of(op)] != nullptr, !is_half(dtype));
      CHECK_EQ(table->scale[i] != nullptr, is_floating(dtype));
      CHECK_EQ(table->divide[i] != nullptr, !is_floating(dtype));
    }
    CHECK(table->stream != nullptr);
    for (auto& row : table->cast)
      for (auto entry : row) CHECK(entry != nullptr);
    for (auto& wire : table->decode_reduce)
      for (auto& acc : wire)
        for (auto entry : acc) CHECK(entry != nullptr);
  }
}

TEST(every_isa_equals_scalar_at_every_length_and_alignment) {
  const FloatMode mode;
  for (const Kernels* table : available_kernels())
    for (const Case& c : all_cases()) compare_with_scalar(*table, c);
}

TEST(every_isa_streams_every_length_to_every_alignment) {
  constexpr std::size_t kMost = 300, kLine = 64;
  std::vector<std::byte> from(kMost + 1);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 37);
  for (const Kernels* table : available_kernels())
    for (std::size_t bytes = 0; bytes <= kMost; ++bytes)
      for (std::size_t shift = 0; shift < kLine; ++shift) {
        std::vector<std::byte> to(kMost + 2 * kLine), expected = to;
        std::copy_n(from.begin() + shift % 2, bytes, expected.begin() + static_cast<std::ptrdiff_t>(shift));
        table->stream(to.data() + shift, from.data() + shift % 2, static_cast<std::int64_t>(bytes));
        stream_fence();
        CHECK_EQ(to == expected, true, table->isa, ": ", bytes, " bytes at ", shift);
      }
}

TEST(kernels_decode_and_encode_all_16_bit_patterns) {
  const FloatMode mode;
  Bits all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
  for (DType half : {DType::f16, DType::bf16})
    for (DType wide : {DType::f32, DType::f64}) {
      check_cast(half, wide, all);
      for (const Kernels* table : available_kernels()) {
        const Bits decoded = run(*table, cast_cases(half, wide).front(), all, all);
        const Bits encoded = run(*table, cast_cases(wide, half).front(), decoded, decoded);
        for (std::size_t i = 0; i < all.size(); ++i)
          CHECK_EQ(encoded[i], format_of(half).is_nan(i) ? format_of(half).nan() : i, table->isa);
      }
    }
}

TEST(casts_round_once_to_nearest_even) {
  const FloatMode mode;
  Random random(13);
  for (DType from : {DType::f64, DType::f32}) {
    for (DType half : {DType::f16, DType::bf16}) check_cast(from, half, around_ties(from, half));
    for (DType to : kFloats) {
      if (to == from) continue;
      check_cast(from, to, special_values(from));
      check_cast(from, to, random_values(from, 20000, random));
    }
  }
}

// 1 + 2^-11 is a tie in f16. Through f32, what lies just beside it would become the tie first.
TEST(cast_of_f64_to_f16_does_not_round_twice) {
  const FloatMode mode;
  const double tie = 1 + 0x1p-11;
  const Bits inputs = {bits_of(std::nextafter(tie, 2)), bits_of(tie),     bits_of(std::nextafter(tie, 0)),
                       bits_of(3 * 0x1p-25 + 0x1p-77),  bits_of(0x1p-25), bits_of(-0x1p-25 - 0x1p-77)};
  const Bits expected = {0x3c01, 0x3c00, 0x3c00, 0x0002, 0x0000, 0x8001};
  for (const Kernels* table : available_kernels()) {
    const Bits out = run(*table, cast_cases(DType::f64, DType::f16).front(), inputs, inputs);
    for (std::size_t i = 0; i < out.size(); ++i) CHECK_EQ(out[i], expected[i], table->isa, " ", i);
  }
}

TEST(floating_reductions_match_plain_arithmetic) {
  const FloatMode mode;
  for (ReduceOp op : kOps)
    for (std::size_t i = 0; i < 4; ++i) {
      const Scales scales = {kFactors[i / 2], kFactors[i % 2]};
      for (DType dtype : kFloats) check_reduction(reduce_cases(dtype, op)[i], op, scales);
      for (DType acc : {DType::f64, DType::f32})
        for (DType wire : {DType::f16, DType::bf16})
          check_reduction(decode_reduce_cases(acc, wire, op)[i], op, scales);
    }
}

TEST(min_and_max_keep_nan_and_order_zeros) {
  const FloatMode mode;
  for (const Kernels* table : available_kernels())
    for (DType dtype : kFloats) {
      const Format f = format_of(dtype);
      const std::uint64_t signalling = f.infinity() + 1;
      const Bits a = {0, f.sign(), f.sign(), f.nan(), signalling | f.sign(), f.infinity(), 1};
      const Bits b = {f.sign(), 0, f.sign(), f.infinity(), 0, f.nan() | f.sign(), f.sign() | 1};
      const Bits lower = {f.sign(), f.sign(), f.sign(), f.nan(), f.nan(), f.nan(), f.sign() | 1};
      const Bits upper = {0, 0, f.sign(), f.nan(), f.nan(), f.nan(), 1};
      CHECK(run(*table, reduce_cases(dtype, ReduceOp::min).front(), a, b) == lower);
      CHECK(run(*table, reduce_cases(dtype, ReduceOp::max).front(), a, b) == upper);
    }
}

TEST(integer_reductions_wrap_and_compare_by_sign) {
  Random random(17);
  for (DType dtype : {DType::i64, DType::i32, DType::u8, DType::i8}) {
    const std::uint64_t mask = ~std::uint64_t{0} >> (64 - 8 * size_of(dtype));
    const Bits a = random_values(dtype, 2000, random);
    const Bits b = random_values(dtype, 2000, random);
    for (ReduceOp op : kOps)
      for (const Case& c : reduce_cases(dtype, op)) {
        const Bits out = run(*available_kernels().front(), c, a, b);
        for (std::size_t i = 0; i < out.size(); ++i) {
          const bool a_first = as_signed(a[i], dtype) < as_signed(b[i], dtype);
          const std::uint64_t picked = a_first == (op == ReduceOp::min) ? a[i] : b[i];
          const std::uint64_t folded = op == ReduceOp::sum ? a[i] + b[i] : a[i] * b[i];
          const bool folds = op == ReduceOp::sum || op == ReduceOp::prod;
          CHECK_EQ(out[i], folds ? folded & mask : picked, c.name, ": ", a[i], ", ", b[i]);
        }
      }
  }
}

TEST(integer_division_truncates_toward_zero) {
  constexpr std::int64_t kDivisors[] = {
      1, 2, 3, 7, 255, 256, 1000003, 0x7fffffff, 0x80000000, (1ll << 53) + 1, INT64_MAX};
  Random random(19);
  for (const Kernels* table : available_kernels())
    for (DType dtype : {DType::i64, DType::i32, DType::u8, DType::i8})
      for (std::int64_t divisor : kDivisors) {
        const std::uint64_t mask = ~std::uint64_t{0} >> (64 - 8 * size_of(dtype));
        Bits in = random_values(dtype, 2000, random);
        for (std::int64_t multiple : {-3, -1, 1, 4})  // quotients that are integers, or just not
          for (std::int64_t near : {-1, 0, 1})
            in.push_back((static_cast<std::uint64_t>(divisor) * static_cast<std::uint64_t>(multiple) +
                          static_cast<std::uint64_t>(near)) &
                         mask);
        Bytes data = pack(in, dtype);
        table->divide[index_of(dtype)](data.data(), data.data(), static_cast<std::int64_t>(in.size()),
                                       divisor);
        const Bits out = unpack(data, dtype);
        for (std::size_t i = 0; i < in.size(); ++i)
          CHECK_EQ(as_signed(out[i], dtype), as_signed(in[i], dtype) / divisor, table->isa, " ",
                   name_of(dtype));
      }
}

TEST(scale_of_one_changes_no_bit) {
  const FloatMode mode;
  Random random(23);
  for (const Kernels* table : available_kernels())
    for (DType dtype : kFloats) {
      const Bits in = random_values(dtype, 4000, random);
      CHECK(run(*table, scale_cases(dtype).front(), in, in) == in);
      CHECK(run(*table, cast_cases(dtype, dtype).front(), in, in) == in);
    }
}

#if defined(__x86_64__)
TEST(float_mode_keeps_denormals_and_restores) {
  constexpr unsigned kFlushing = 0xffc0;  // flush to zero, denormals are zero, rounding toward zero
  const Bits tiny = {1, 0x007fffff, 0x80000001};
  const Bits half = {0x0001, 0x03ff, 0x8001};
  const Bits tie = {0x3f801001, 0x3f803000, 0xbf801001};  // just above 1 + 2^-11, and a tie that rounds up
  const unsigned before = _mm_getcsr();
  for (const Kernels* table : available_kernels()) {
    const auto sums = [&] {
      return run(*table, reduce_cases(DType::f32, ReduceOp::sum).front(), tiny, tiny);
    };
    const auto halves = [&](const Bits& in) {
      return run(*table, cast_cases(DType::f32, DType::f16)[0], in, in);
    };
    _mm_setcsr(kFlushing);
    const Bits flushed = sums();
    Bits kept, decoded, encoded;
    {
      const FloatMode mode;
      kept = sums();
      decoded = halves(run(*table, cast_cases(DType::f16, DType::f32)[0], half, half));
      encoded = halves(tie);
    }
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    CHECK((flushed == Bits{0, 0, 0x80000000}));
    CHECK((kept == Bits{2, 0x00fffffe, 0x80000002}));
    CHECK(decoded == half);
    CHECK((encoded == Bits{0x3c01, 0x3c02, 0xbc01}));
    CHECK_EQ(after & ~0x3fu, kFlushing, table->isa);  // the low bits record exceptions
  }
}
#endif

}  // namespace pycomm
