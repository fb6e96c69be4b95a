// The loops behind the table, written once and included by each instruction set's file, which compiles them
// with its own flags. They are generic over a struct Isa, derived from Portable, with
//   kName, kVectorBytes   the size of a vector register; 1 for plain elements
//   store_past_caches     writes a register to an aligned address
//   widen, narrow, f32_from_f16, f16_from_f32   overloads for the packs that it has better instructions for
// All else are operators of the compiler's vector types. Internal linkage throughout: see half.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/half.h"
#include "kernels/kernels.h"

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
  static constexpr bool kStreams = false;  // whole registers are stored past the caches, to aligned addresses
  template <class U16>
  static auto widen(U16 x) {
    return convert<std::uint32_t, std::uint16_t, sizeof(U16) / 2>(x);
  }
  template <class U32>
  static auto narrow(U32 x) {
    return convert<std::uint16_t, std::uint32_t, sizeof(U32) / 4>(x);
  }
  template <class U16>
  static auto f32_from_f16(U16 x) {
    return pycomm::f32_from_f16<sizeof(U16) / 2>(widen(x));
  }
  template <class F32>
  static auto f16_from_f32(F32 x) {
    return narrow(pycomm::f16_from_f32<sizeof(F32) / 4>(x));
  }
};

template <class T, int lanes>
inline Pack<T, lanes> read(const void* from, std::int64_t i) {
  Pack<T, lanes> x;
  __builtin_memcpy(&x, static_cast<const char*>(from) + i * static_cast<std::int64_t>(sizeof(T)), sizeof(x));
  return x;
}

template <class T, int lanes>
inline void write(void* to, std::int64_t i, Pack<T, lanes> x) {
  __builtin_memcpy(static_cast<char*>(to) + i * static_cast<std::int64_t>(sizeof(T)), &x, sizeof(x));
}

// Elements i, i + 1, ... of type T, as A.
template <class Isa, class T, class A, int lanes>
inline Pack<A, lanes> load(const void* from, std::int64_t i) {
  if constexpr (std::is_same_v<T, F16>) {
    return convert<A, float, lanes>(Isa::f32_from_f16(read<std::uint16_t, lanes>(from, i)));
  } else if constexpr (std::is_same_v<T, BF16>) {
    return convert<A, float, lanes>(f32_from_bf16<lanes>(Isa::widen(read<std::uint16_t, lanes>(from, i))));
  } else {
    return convert<A, T, lanes>(read<T, lanes>(from, i));
  }
}

// The inverse: makes NaNs canonical and rounds once.
template <class Isa, class T, class A, int lanes>
inline void store(void* to, std::int64_t i, Pack<A, lanes> x) {
  if constexpr (std::is_floating_point_v<A>) x = canonical<A, lanes>(x);
  if constexpr (std::is_same_v<T, F16>) {
    if constexpr (std::is_same_v<A, double>) x = round_to_grid<10, -14, lanes>(x);
    write<std::uint16_t, lanes>(to, i, Isa::f16_from_f32(convert<float, A, lanes>(x)));
  } else if constexpr (std::is_same_v<T, BF16>) {
    if constexpr (std::is_same_v<A, double>) x = round_to_grid<7, -126, lanes>(x);
    write<std::uint16_t, lanes>(to, i, Isa::narrow(bf16_from_f32<lanes>(convert<float, A, lanes>(x))));
  } else if constexpr (Isa::kStreams && sizeof(Pack<T, lanes>) == Isa::kVectorBytes) {
    const Pack<T, lanes> stored = convert<T, A, lanes>(x);
    Isa::store_past_caches(static_cast<char*>(to) + i * static_cast<std::int64_t>(sizeof(T)), &stored);
  } else {
    write<T, lanes>(to, i, convert<T, A, lanes>(x));
  }
}

// The smaller of each pair of lanes. Either order of the comparison yields its second operand for equal
// operands and for NaN, so the two results differ only there, and their union is -0 for zeros of both signs
// and a NaN for any NaN.
template <class A, int lanes>
inline Pack<A, lanes> least(Pack<A, lanes> a, Pack<A, lanes> b) {
  if constexpr (std::is_floating_point_v<A>) {
    using U = Pack<std::conditional_t<sizeof(A) == 4, std::uint32_t, std::uint64_t>, lanes>;
    return bits_as<Pack<A, lanes>>(bits_as<U>(a < b ? a : b) | bits_as<U>(b < a ? b : a));
  } else {
    return a < b ? a : b;
  }
}

template <ReduceOp op, class A, int lanes>
inline Pack<A, lanes> combine(Pack<A, lanes> a, Pack<A, lanes> b) {
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

template <int count>
struct Lanes {
  static constexpr int value = count;
};

// Calls body(Lanes, i) for the elements i ... i + Lanes - 1: registers full of A, then the rest one by one.
template <class Isa, class A, class Body>
inline void sweep(std::int64_t count, Body body) {
  constexpr int kWide = Isa::kVectorBytes / sizeof(A);
  std::int64_t i = 0;
  if constexpr (kWide > 1)
#pragma GCC unroll 2  // up to twice as fast on tiles in the first-level cache
    for (; i + kWide <= count; i += kWide) body(Lanes<kWide>{}, i);
#pragma GCC unroll 1  // unrolled, these few elements are half of the machine code
  for (; i < count; ++i) body(Lanes<1>{}, i);
}

// Operands: a and dst of type T, b of type B.
template <class Isa, ReduceOp op, class T, class B = T>
void reduce(void* dst, const void* a, const void* b, std::int64_t count, Scales scales) {
  using A = Computed<T>;
  const auto plain = [&](auto width, std::int64_t i) {
    constexpr int lanes = decltype(width)::value;
    const Pack<A, lanes> x = load<Isa, T, A, lanes>(a, i);
    const Pack<A, lanes> y = load<Isa, B, A, lanes>(b, i);
    store<Isa, T, A, lanes>(dst, i, combine<op, A, lanes>(x, y));
  };
  if constexpr (std::is_integral_v<A>) {
    sweep<Isa, A>(count, plain);
  } else {
    if (scales.a == 1.0 && scales.result == 1.0) return sweep<Isa, A>(count, plain);
    const A before = static_cast<A>(scales.a);
    const A after = static_cast<A>(scales.result);
    sweep<Isa, A>(count, [&](auto width, std::int64_t i) {
      constexpr int lanes = decltype(width)::value;
      const Pack<A, lanes> x = load<Isa, T, A, lanes>(a, i) * before;
      const Pack<A, lanes> y = load<Isa, B, A, lanes>(b, i);
      store<Isa, T, A, lanes>(dst, i, combine<op, A, lanes>(x, y) * after);
    });
  }
}

inline constexpr std::int64_t kLineBytes = 64;  // of the caches: streamed whole or not at all

// Bytes from there to the next line.
inline std::int64_t to_next_line(const void* address) {
  return static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(address) % kLineBytes);
}

template <class Isa>
struct Streaming : Isa {
  static constexpr bool kStreams = Isa::kVectorBytes > 1;
};

template <class Isa, ReduceOp op, class T>
void reduce_streamed(void* dst, const void* a, const void* b, std::int64_t count, Scales scales) {
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));
  const std::int64_t before = to_next_line(dst);
  const std::int64_t head = before / kSize;
  if (before % kSize != 0 || head > count) return reduce<Isa, op, T>(dst, a, b, count, scales);
  reduce<Isa, op, T>(dst, a, b, head, scales);
  reduce<Streaming<Isa>, op, T>(static_cast<char*>(dst) + before, static_cast<const char*>(a) + before,
                                static_cast<const char*>(b) + before, count - head, scales);
}

template <class Isa, class From, class To>
void cast(void* dst, const void* src, std::int64_t count, double factor) {
  using A = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
  if (factor != 1.0) {
    const A by = static_cast<A>(factor);
    sweep<Isa, A>(count, [&](auto width, std::int64_t i) {
      constexpr int lanes = decltype(width)::value;
      store<Isa, To, A, lanes>(dst, i, load<Isa, From, A, lanes>(src, i) * by);
    });
  } else if constexpr (std::is_same_v<From, To>) {
    if (count > 0 && dst != src) __builtin_memcpy(dst, src, static_cast<std::size_t>(count) * sizeof(From));
  } else {
    sweep<Isa, A>(count, [&](auto width, std::int64_t i) {
      constexpr int lanes = decltype(width)::value;
      store<Isa, To, A, lanes>(dst, i, load<Isa, From, A, lanes>(src, i));
    });
  }
}

// Up to 32 bits by a division in f64, which vector units have. Truncating it is exact: a quotient that is no
// integer is at least 2^-31 away from one, and the rounding error is below 2^-21 of that.
template <class Isa, class T>
void divide(void* dst, const void* src, std::int64_t count, std::int64_t divisor) {
  const double by = static_cast<double>(divisor);
  for (std::int64_t i = 0; i < count; ++i) {
    const T x = read<T, 1>(src, i);
    if constexpr (sizeof(T) < 8) {
      write<T, 1>(dst, i, static_cast<T>(static_cast<std::int32_t>(static_cast<double>(x) / by)));
    } else {
      write<T, 1>(dst, i, x / divisor);
    }
  }
}

template <class Isa>
void stream(void* dst, const void* src, std::int64_t bytes) {
  auto* to = static_cast<char*>(dst);
  auto* from = static_cast<const char*>(src);
  if constexpr (Isa::kVectorBytes > 1) {
    std::int64_t head = to_next_line(to);
    if (head > bytes) head = bytes;
    __builtin_memcpy(to, from, static_cast<std::size_t>(head));
    const std::int64_t end = head + (bytes - head) / kLineBytes * kLineBytes;
    for (std::int64_t i = head; i < end; i += Isa::kVectorBytes) Isa::store_past_caches(to + i, from + i);
    to += end;
    from += end;
    bytes -= end;
  }
  if (bytes > 0) __builtin_memcpy(to, from, static_cast<std::size_t>(bytes));
}

// Sums and products that wrap have the same bits signed and unsigned; only the unsigned ones are defined.
template <class Isa, ReduceOp op>
constexpr void add_reductions(Kernels& table) {
  constexpr bool wraps = op == ReduceOp::sum || op == ReduceOp::prod;
  constexpr int i = index_of(op);
  const auto add = [&]<class T>(DType dtype, T) {
    table.reduce[index_of(dtype)][i] = reduce<Isa, op, T>;
    if constexpr (!kIsHalf<T>) table.reduce_streamed[index_of(dtype)][i] = reduce_streamed<Isa, op, T>;
  };
  add(DType::f64, double{});
  add(DType::f32, float{});
  add(DType::f16, F16{});
  add(DType::bf16, BF16{});
  add(DType::i64, std::conditional_t<wraps, std::uint64_t, std::int64_t>{});
  add(DType::i32, std::conditional_t<wraps, std::uint32_t, std::int32_t>{});
  add(DType::u8, std::uint8_t{});
  add(DType::i8, std::conditional_t<wraps, std::uint8_t, std::int8_t>{});
  table.decode_reduce[0][0][i] = reduce<Isa, op, double, F16>;
  table.decode_reduce[0][1][i] = reduce<Isa, op, float, F16>;
  table.decode_reduce[1][0][i] = reduce<Isa, op, double, BF16>;
  table.decode_reduce[1][1][i] = reduce<Isa, op, float, BF16>;
}

template <class Isa, class From>
constexpr void add_casts(Kernels& table, DType from) {
  table.cast[index_of(from)][index_of(DType::f64)] = cast<Isa, From, double>;
  table.cast[index_of(from)][index_of(DType::f32)] = cast<Isa, From, float>;
  table.cast[index_of(from)][index_of(DType::f16)] = cast<Isa, From, F16>;
  table.cast[index_of(from)][index_of(DType::bf16)] = cast<Isa, From, BF16>;
  table.scale[index_of(from)] = cast<Isa, From, From>;
}

template <class Isa>
constexpr Kernels make_kernels() {
  Kernels table{};
  table.isa = Isa::kName;
  table.stream = stream<Isa>;
  add_reductions<Isa, ReduceOp::sum>(table);
  add_reductions<Isa, ReduceOp::prod>(table);
  add_reductions<Isa, ReduceOp::min>(table);
  add_reductions<Isa, ReduceOp::max>(table);
  add_casts<Isa, double>(table, DType::f64);
  add_casts<Isa, float>(table, DType::f32);
  add_casts<Isa, F16>(table, DType::f16);
  add_casts<Isa, BF16>(table, DType::bf16);
  table.divide[index_of(DType::i64)] = divide<Isa, std::int64_t>;
  table.divide[index_of(DType::i32)] = divide<Isa, std::int32_t>;
  table.divide[index_of(DType::u8)] = divide<Isa, std::uint8_t>;
  table.divide[index_of(DType::i8)] = divide<Isa, std::int8_t>;
  return table;
}

}  // namespace
}  // namespace pycomm
