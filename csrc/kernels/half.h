// The 16-bit formats in f32 arithmetic, one element at a time or a vector register of them. The functions are
// generic over that: a Pack of one lane is the plain type, so every instruction set runs the same formulas.
//
// Everything here has internal linkage. The files of the instruction sets compile it with different flags,
// and of an inline function with external linkage the linker would keep one copy, perhaps the AVX-512 one,
// for all.
#pragma once

#include <cstdint>
#include <type_traits>

// Of functions that kernels on a GPU call too.
#ifdef __CUDACC__
#define PYCOMM_EVERYWHERE __host__ __device__
#else
#define PYCOMM_EVERYWHERE
#endif

namespace pycomm {
namespace {

template <class T, int lanes>
struct PackOf {
  typedef T type __attribute__((vector_size(sizeof(T) * lanes)));
};
template <class T>
struct PackOf<T, 1> {
  using type = T;
};
template <class T, int lanes>
using Pack = typename PackOf<T, lanes>::type;

// The bits of `from` as a To of the same size.
template <class To, class From>
PYCOMM_EVERYWHERE inline To bits_as(From from) {
  return __builtin_bit_cast(To, from);
}

// Each lane converted to To, rounding to nearest even.
template <class To, class From, int lanes>
PYCOMM_EVERYWHERE inline Pack<To, lanes> convert(Pack<From, lanes> x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (lanes == 1) {
    return static_cast<To>(x);
  } else {
    return __builtin_convertvector(x, Pack<To, lanes>);
  }
}

// NaNs become the quiet one with sign and payload zero: 0x7fc00000, 0x7ff8000000000000. Which payload an
// addition of two NaNs keeps depends on the order that the compiler gives its operands; this removes the
// difference. It costs f32 sums a tenth of their speed from the second-level cache with AVX2, and nothing
// with AVX-512 there or from memory.
template <class T, int lanes>
PYCOMM_EVERYWHERE inline Pack<T, lanes> canonical(Pack<T, lanes> x) {
  const Pack<T, lanes> nan = Pack<T, lanes>{} + static_cast<T>(__builtin_nan(""));
  return x == x ? x : nan;
}

// bf16 and f16 come and go as the low halves of 32-bit lanes.

template <int lanes>
PYCOMM_EVERYWHERE inline Pack<float, lanes> f32_from_bf16(Pack<std::uint32_t, lanes> x) {
  return bits_as<Pack<float, lanes>>(x << 16);
}

// To nearest even. A NaN must be canonical; any other could round up to infinity.
template <int lanes>
PYCOMM_EVERYWHERE inline Pack<std::uint32_t, lanes> bf16_from_f32(Pack<float, lanes> x) {
  using U = Pack<std::uint32_t, lanes>;
  const U u = bits_as<U>(x);
  return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}

// The exponents of f16 are 112 below those of f32; its denormals are made normal by a subtraction that is
// exact.
template <int lanes>
PYCOMM_EVERYWHERE inline Pack<float, lanes> f32_from_f16(Pack<std::uint32_t, lanes> x) {
  using F = Pack<float, lanes>;
  using U = Pack<std::uint32_t, lanes>;
  const U magnitude = (x & 0x7fffu) << 13;
  const U normal = magnitude + (112u << 23);
  const U denormal = bits_as<U>(bits_as<F>(magnitude + (113u << 23)) - 0x1p-14f);
  const U not_finite = magnitude + (224u << 23);
  const U finite = magnitude < (1u << 23) ? denormal : normal;
  return bits_as<F>((magnitude < (31u << 23) ? finite : not_finite) | ((x & 0x8000u) << 16));
}

// To nearest even. A NaN must be canonical. Denormals are rounded by adding 0.5, whose last bit weighs as
// theirs does.
template <int lanes>
PYCOMM_EVERYWHERE inline Pack<std::uint32_t, lanes> f16_from_f32(Pack<float, lanes> x) {
  using F = Pack<float, lanes>;
  using U = Pack<std::uint32_t, lanes>;
  const U u = bits_as<U>(x);
  const U magnitude = u & 0x7fffffffu;
  const U normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const U denormal = bits_as<U>(bits_as<F>(magnitude) + 0.5f) - (126u << 23);
  const U finite = magnitude < (113u << 23) ? denormal : normal;
  const U infinite_or_nan = magnitude > (255u << 23) ? U{} + 0x7e00u : U{} + 0x7c00u;
  const U half =
      magnitude < (143u << 23) ? finite : infinite_or_nan;  // below 65536, where 65520 rounds up to infinity
  return half | ((u >> 16) & 0x8000u);
}

// Rounds to the grid of a format with `fraction` bits after the leading one and no exponent below `least`, so
// that the way from f64 through f32 to a 16-bit format rounds once. Adding a power of two whose last bit
// weighs as much as the grid's does the rounding; beyond f32's range it is skipped, as infinity follows. A
// NaN stays the NaN it was.
template <int fraction, int least, int lanes>
PYCOMM_EVERYWHERE inline Pack<double, lanes> round_to_grid(Pack<double, lanes> x) {
  using F = Pack<double, lanes>;
  using I = Pack<std::int64_t, lanes>;
  constexpr std::int64_t kOne = std::int64_t{1} << 52;  // of an exponent
  constexpr std::int64_t kLeast = (1023 + least) * kOne;
  constexpr std::int64_t kMost = (1023 + 128) * kOne;
  const I sign = bits_as<I>(x) & INT64_MIN;
  const F magnitude = bits_as<F>(bits_as<I>(x) & INT64_MAX);
  const I exponent = bits_as<I>(magnitude) & (2047 * kOne);
  const I above = exponent < kLeast ? I{} + kLeast : exponent;
  const I clamped = above > kMost ? I{} + kMost : above;
  const F grid = bits_as<F>(clamped + (52 - fraction) * kOne);
  return bits_as<F>(bits_as<I>((magnitude + grid) - grid) | sign);
}

}  // namespace
}  // namespace pycomm
