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

#include "kernels/elements.h"
#include "kernels/kernels.h"

namespace pycomm {
namespace {

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

template <class T>
void divide(void* dst, const void* src, std::int64_t count, std::int64_t divisor) {
  const double by = static_cast<double>(divisor);
  for (std::int64_t i = 0; i < count; ++i) write<T, 1>(dst, i, quotient(read<T, 1>(src, i), divisor, by));
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

template <class Isa, ReduceOp op>
constexpr void add_reductions(Kernels& table) {
  constexpr int i = index_of(op);
  for_each_type<op>([&]<class T>(DType dtype, T) {
    table.reduce[index_of(dtype)][i] = reduce<Isa, op, T>;
    if constexpr (!kIsHalf<T>) table.reduce_streamed[index_of(dtype)][i] = reduce_streamed<Isa, op, T>;
  });
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
  table.divide[index_of(DType::i64)] = divide<std::int64_t>;
  table.divide[index_of(DType::i32)] = divide<std::int32_t>;
  table.divide[index_of(DType::u8)] = divide<std::uint8_t>;
  table.divide[index_of(DType::i8)] = divide<std::int8_t>;
  return table;
}

}  // namespace
}  // namespace pycomm
