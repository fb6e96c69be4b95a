// Floating formats from their definition, sharing no code with the kernels, and awkward values of every type.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"

namespace pycomm {

using Bits = std::vector<std::uint64_t>;  // elements of any type, in the low bits

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits() {  // splitmix64
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(n));
  }

 private:
  std::uint64_t state_;
};

// A floating format as IEEE 754 lays it out.
struct Format {
  int exponent_bits;
  int fraction_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int width() const { return 1 + exponent_bits + fraction_bits; }
  std::uint64_t sign() const { return std::uint64_t{1} << (width() - 1); }
  std::uint64_t infinity() const { return ((std::uint64_t{1} << exponent_bits) - 1) << fraction_bits; }
  std::uint64_t nan() const { return infinity() | (std::uint64_t{1} << (fraction_bits - 1)); }
  bool is_nan(std::uint64_t bits) const { return (bits & (sign() - 1)) > infinity(); }

  double value(std::uint64_t bits) const {
    const double fraction = static_cast<double>(bits & ((std::uint64_t{1} << fraction_bits) - 1));
    const int exponent = static_cast<int>((bits & infinity()) >> fraction_bits);
    const double hidden = exponent == 0 ? 0 : std::ldexp(1.0, fraction_bits);
    double magnitude = std::ldexp(hidden + fraction, std::max(exponent, 1) - bias() - fraction_bits);
    if ((bits & infinity()) == infinity()) magnitude = std::numeric_limits<double>::infinity();
    if (is_nan(bits)) magnitude = std::numeric_limits<double>::quiet_NaN();
    return (bits & sign()) != 0 ? -magnitude : magnitude;
  }

  // The pattern nearest to x, ties to even, found by bisection among all finite ones. NaN is the canonical
  // one.
  std::uint64_t nearest(double x) const {
    if (std::isnan(x)) return nan();
    const std::uint64_t signed_zero = std::signbit(x) ? sign() : 0;
    std::uint64_t low = 0;  // the last pattern with value <= |x|; infinity counts as the next power of two
    std::uint64_t high = infinity() + 1;
    while (high - low > 1) {
      const std::uint64_t middle = low + (high - low) / 2;
      (edge(middle) <= std::abs(x) ? low : high) = middle;
    }
    if (low == infinity()) return signed_zero | low;
    const double tie = (edge(low) + edge(low + 1)) / 2;
    const bool up = std::abs(x) > tie || (std::abs(x) == tie && low % 2 == 1);
    return signed_zero | (low + (up ? 1 : 0));
  }

  double edge(std::uint64_t bits) const {
    return bits == infinity() ? 2 * std::ldexp(1.0, std::ilogb(value(bits - 1))) : value(bits);
  }
};

inline Format format_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return {11, 52};
    case DType::f32:
      return {8, 23};
    case DType::f16:
      return {5, 10};
    case DType::bf16:
      return {8, 7};
    default:
      throw Error(ErrorKind::internal, "not a floating type");
  }
}

// Zeros, denormals, extremes, infinities and NaNs (quiet and signalling, both signs, with payloads).
inline Bits special_values(DType dtype) {
  if (!is_floating(dtype)) {
    const std::uint64_t top = std::uint64_t{1} << (8 * size_of(dtype) - 1);
    return {0, 1, 2, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2};
  }
  const Format f = format_of(dtype);
  const std::uint64_t one = std::uint64_t{1} << f.fraction_bits;
  Bits out = {0,
              1,
              one - 1,
              one,
              one + 1,
              f.nearest(1.0),
              f.infinity() - 1,
              f.infinity(),
              f.nan(),
              f.infinity() + 1,
              f.nan() + 5};
  for (std::size_t i = 0, n = out.size(); i < n; ++i) out.push_back(out[i] | f.sign());
  return out;
}

// Half of them special or of random bits, half of them near 1, where sums round.
inline Bits random_values(DType dtype, std::int64_t count, Random& random) {
  const Bits special = special_values(dtype);
  const std::uint64_t mask = ~std::uint64_t{0} >> (64 - 8 * size_of(dtype));
  Bits out;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto kind = random.below(4);
    std::uint64_t bits = random.bits() & mask;
    if (kind == 0)
      bits = special[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(special.size())))];
    if (kind >= 2 && is_floating(dtype)) {
      const Format f = format_of(dtype);
      const std::uint64_t fraction = bits & ((std::uint64_t{1} << f.fraction_bits) - 1);
      const auto exponent = static_cast<std::uint64_t>(f.bias() - 4 + random.below(9));
      bits = (bits & f.sign()) | (exponent << f.fraction_bits) | fraction;
    }
    out.push_back(bits);
  }
  return out;
}

}  // namespace pycomm
