// What the kernels do to one element, or to a register of them: reading and writing each type, and combining
// two. Written once for every instruction set and for GPUs, where lanes is 1; what a GPU adds is which thread
// does which element. So the tests of the scalar table are tests of what a GPU computes, as far as its
// additions, products and conversions are IEEE 754's: it is compiled with -fmad=false, keeps denormals, and
// makes NaNs of other payloads, which store() removes. Internal linkage throughout: see half.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "kernels/half.h"

namespace pycomm {
namespace {

// Element types that C++ has no arithmetic for.
enum class F16 : std::uint16_t {};
enum class BF16 : std::uint16_t {};

template <class T>
inline constexpr bool kIsHalf = std::is_same_v<T, F16> || std::is_same_v<T, BF16>;
template <class T>
using Computed = std::conditional_t<kIsHalf<T>, float, T>;

// What works for packs of any width. 16-bit elements are computed on in lanes of 32.
struct Portable {
  static constexpr int kVectorBytes = 1;   // plain elements
  static constexpr bool kStreams = false;  // whole registers are stored past the caches, to aligned addresses
  template <class U16>
  PYCOMM_EVERYWHERE static auto widen(U16 x) {
    return convert<std::uint32_t, std::uint16_t, sizeof(U16) / 2>(x);
  }
  template <class U32>
  PYCOMM_EVERYWHERE static auto narrow(U32 x) {
    return convert<std::uint16_t, std::uint32_t, sizeof(U32) / 4>(x);
  }
  template <class U16>
  PYCOMM_EVERYWHERE static auto f32_from_f16(U16 x) {
    return pycomm::f32_from_f16<sizeof(U16) / 2>(widen(x));
  }
  template <class F32>
  PYCOMM_EVERYWHERE static auto f16_from_f32(F32 x) {
    return narrow(pycomm::f16_from_f32<sizeof(F32) / 4>(x));
  }
};

template <class T, int lanes>
PYCOMM_EVERYWHERE inline Pack<T, lanes> read(const void* from, std::int64_t i) {
  Pack<T, lanes> x;
  __builtin_memcpy(&x, static_cast<const char*>(from) + i * static_cast<std::int64_t>(sizeof(T)), sizeof(x));
  return x;
}

template <class T, int lanes>
PYCOMM_EVERYWHERE inline void write(void* to, std::int64_t i, Pack<T, lanes> x) {
  __builtin_memcpy(static_cast<char*>(to) + i * static_cast<std::int64_t>(sizeof(T)), &x, sizeof(x));
}

// Elements i, i + 1, ... of type T, as A.
template <class Isa, class T, class A, int lanes>
PYCOMM_EVERYWHERE inline Pack<A, lanes> load(const void* from, std::int64_t i) {
  if constexpr (std::is_same_v<T, F16>) {
    return convert<A, float, lanes>(Isa::f32_from_f16(read<std::uint16_t, lanes>(from, i)));
  } else if constexpr (std::is_same_v<T, BF16>) {
    return convert<A, float, lanes>(f32_from_bf16<lanes>(Isa::widen(read<std::uint16_t, lanes>(from, i))));
  } else {
    return convert<A, T, lanes>(read<T, lanes>(from, i));
  }
}

// The inverse: rounds once, and makes NaNs canonical in the last type that has arithmetic, since converting
// one may give another.
template <class Isa, class T, class A, int lanes>
PYCOMM_EVERYWHERE inline void store(void* to, std::int64_t i, Pack<A, lanes> x) {
  if constexpr (std::is_same_v<A, double> && std::is_same_v<T, F16>) x = round_to_grid<10, -14, lanes>(x);
  if constexpr (std::is_same_v<A, double> && std::is_same_v<T, BF16>) x = round_to_grid<7, -126, lanes>(x);
  using Last = Computed<T>;
  Pack<Last, lanes> last = convert<Last, A, lanes>(x);
  if constexpr (std::is_floating_point_v<Last>) last = canonical<Last, lanes>(last);
  if constexpr (std::is_same_v<T, F16>) {
    write<std::uint16_t, lanes>(to, i, Isa::f16_from_f32(last));
  } else if constexpr (std::is_same_v<T, BF16>) {
    write<std::uint16_t, lanes>(to, i, Isa::narrow(bf16_from_f32<lanes>(last)));
  } else if constexpr (Isa::kStreams && sizeof(last) == Isa::kVectorBytes) {
    Isa::store_past_caches(static_cast<char*>(to) + i * static_cast<std::int64_t>(sizeof(T)), &last);
  } else {
    write<T, lanes>(to, i, last);
  }
}

// The smaller of each pair of lanes. Either order of the comparison yields its second operand for equal
// operands and for NaN, so the two results differ only there, and their union is -0 for zeros of both signs
// and a NaN for any NaN.
template <class A, int lanes>
PYCOMM_EVERYWHERE inline Pack<A, lanes> least(Pack<A, lanes> a, Pack<A, lanes> b) {
  if constexpr (std::is_floating_point_v<A>) {
    using U = Pack<std::conditional_t<sizeof(A) == 4, std::uint32_t, std::uint64_t>, lanes>;
    return bits_as<Pack<A, lanes>>(bits_as<U>(a < b ? a : b) | bits_as<U>(b < a ? b : a));
  } else {
    return a < b ? a : b;
  }
}

template <ReduceOp op, class A, int lanes>
PYCOMM_EVERYWHERE inline Pack<A, lanes> combine(Pack<A, lanes> a, Pack<A, lanes> b) {
  if constexpr (op == ReduceOp::sum) {
    return static_cast<Pack<A, lanes>>(a + b);
  } else if constexpr (op == ReduceOp::prod) {
    return static_cast<Pack<A, lanes>>(a * b);
  } else if constexpr (op == ReduceOp::min) {
    return least<A, lanes>(a, b);
  } else if constexpr (std::is_floating_point_v<A>) {
    return -least<A, lanes>(-a, -b);
  } else {
    return a > b ? a : b;
  }
}

// Up to 32 bits by a division in f64, which vector units have. Truncating it is exact: a quotient that is no
// integer is at least 2^-31 away from one, and the rounding error is below 2^-21 of that.
template <class T>
PYCOMM_EVERYWHERE inline T quotient(T x, std::int64_t divisor, double divisor_as_f64) {
  if constexpr (sizeof(T) < 8) {
    return static_cast<T>(static_cast<std::int32_t>(static_cast<double>(x) / divisor_as_f64));
  } else {
    return x / divisor;
  }
}

// Calls add(dtype, T{}) for each dtype with the type that `op` is computed on. Sums and products that wrap
// have the same bits signed and unsigned; only the unsigned ones are defined.
template <ReduceOp op, class Add>
constexpr void for_each_type(Add add) {
  constexpr bool wraps = op == ReduceOp::sum || op == ReduceOp::prod;
  add(DType::f64, double{});
  add(DType::f32, float{});
  add(DType::f16, F16{});
  add(DType::bf16, BF16{});
  add(DType::i64, std::conditional_t<wraps, std::uint64_t, std::int64_t>{});
  add(DType::i32, std::conditional_t<wraps, std::uint32_t, std::int32_t>{});
  add(DType::u8, std::uint8_t{});
  add(DType::i8, std::conditional_t<wraps, std::uint8_t, std::int8_t>{});
}

}  // namespace
}  // namespace pycomm
