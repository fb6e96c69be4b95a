// What a thread of a GPU does in an element-wise loop, for gpu_elementwise.cu. It runs on the processor as
// well: the tests here take the threads one after the other.
//
// A thread takes a *block* of elements, as many as make 16 bytes of the narrowest operand, and moves it by
// accesses of 16 bytes, neighbours beside neighbours. What does not lie so (the ends of a run, or all of it
// where the operands' blocks do not begin on multiples of 16 together) goes element by element: as right, and
// slower, since a warp then moves 32 elements by an access.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "kernels/elements.h"

#ifdef __CUDA_ARCH__
#define PYCOMM_UNROLL _Pragma("unroll")
#else
#define PYCOMM_UNROLL
#endif

namespace pycomm {
namespace {

// Which elements go in blocks; those before and behind go one by one.
struct Cut {
  std::int64_t count = 0;
  std::int64_t head = 0;
  std::int64_t blocks = 0;
};

// One access.
struct Word {
  std::uint32_t parts[4];
} __attribute__((may_alias, aligned(16)));

// `count` elements of T: a multiple of 16 bytes.
template <class T, int count>
struct Block {
  static constexpr int kWords = static_cast<int>(sizeof(T)) * count / 16;
  alignas(16) T elements[count];

  PYCOMM_EVERYWHERE void read(const void* from) {
    PYCOMM_UNROLL
    for (int i = 0; i < kWords; ++i) reinterpret_cast<Word*>(elements)[i] = static_cast<const Word*>(from)[i];
  }
  PYCOMM_EVERYWHERE void write(void* to) const {
    PYCOMM_UNROLL
    for (int i = 0; i < kWords; ++i) static_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(elements)[i];
  }
};

template <class T>
PYCOMM_EVERYWHERE bool is_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % sizeof(T) == 0;
}

// An element anywhere. All threads of a launch take the same branch.
template <class T>
PYCOMM_EVERYWHERE T fetch(const void* from, std::int64_t i) {
  if (is_aligned<T>(from)) return static_cast<const T*>(from)[i];
  T x;
  const auto* bytes = static_cast<const unsigned char*>(from) + i * static_cast<std::int64_t>(sizeof(T));
  for (std::size_t k = 0; k < sizeof(T); ++k) reinterpret_cast<unsigned char*>(&x)[k] = bytes[k];
  return x;
}

template <class T>
PYCOMM_EVERYWHERE void put(void* to, std::int64_t i, T x) {
  if (is_aligned<T>(to)) {
    static_cast<T*>(to)[i] = x;
    return;
  }
  auto* bytes = static_cast<unsigned char*>(to) + i * static_cast<std::int64_t>(sizeof(T));
  for (std::size_t k = 0; k < sizeof(T); ++k) bytes[k] = reinterpret_cast<const unsigned char*>(&x)[k];
}

template <class T>
PYCOMM_EVERYWHERE T* at(T* base, std::int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(base) + bytes;
}

// What an element becomes: an Operation has the types of its operands and result, and
// operator()(dst, a, b, i), which does element i. Nothing, as B: there is no b.
struct Nothing {};

template <class Operation>
struct Sizes {
  using D = typename Operation::D;
  using A = typename Operation::A;
  using B = typename Operation::B;
  static constexpr bool kBinary = !std::is_same_v<B, Nothing>;
  static constexpr int kNarrowest =
      static_cast<int>(std::min({sizeof(D), sizeof(A), kBinary ? sizeof(B) : sizeof(A)}));
  static constexpr int kBlock = 16 / kNarrowest;  // elements
};

// The part of one thread, number `first` of `stride`. No pointer is __restrict__: dst may be a or b. A thread
// reads its elements before it writes them.
template <class Operation>
PYCOMM_EVERYWHERE inline void sweep_thread(void* dst, const void* a, const void* b, Cut cut,
                                           const Operation& operation, std::int64_t first,
                                           std::int64_t stride) {
  using S = Sizes<Operation>;
  using D = typename S::D;
  using A = typename S::A;
  using B = std::conditional_t<S::kBinary, typename S::B, A>;
  for (std::int64_t block = first; block < cut.blocks; block += stride) {
    const std::int64_t element = cut.head + block * S::kBlock;
    Block<A, S::kBlock> x;
    Block<B, S::kBlock> y;
    Block<D, S::kBlock> result;
    x.read(at(a, element * static_cast<std::int64_t>(sizeof(A))));
    if constexpr (S::kBinary) y.read(at(b, element * static_cast<std::int64_t>(sizeof(B))));
    PYCOMM_UNROLL
    for (int i = 0; i < S::kBlock; ++i) operation(result.elements, x.elements, y.elements, i);
    result.write(at(dst, element * static_cast<std::int64_t>(sizeof(D))));
  }

  const std::int64_t behind = cut.head + cut.blocks * S::kBlock;
  const std::int64_t singles = cut.count - cut.blocks * S::kBlock;
  for (std::int64_t single = first; single < singles; single += stride) {
    const std::int64_t element = single < cut.head ? single : behind + (single - cut.head);
    const A x = fetch<A>(a, element);
    B y{};
    if constexpr (S::kBinary) y = fetch<B>(b, element);
    D result;
    operation(&result, &x, &y, 0);
    put<D>(dst, element, result);
  }
}

// The first element of which every operand lies on a multiple of 16, if there is one in a block's reach.
template <class Operation>
Cut cut_of(const void* dst, const void* a, const void* b, std::int64_t count) {
  using S = Sizes<Operation>;
  const auto lies = [](const void* address, std::size_t size, std::int64_t element) {
    return (reinterpret_cast<std::uintptr_t>(address) + static_cast<std::uintptr_t>(element) * size) % 16 ==
           0;
  };
  for (std::int64_t head = 0; head < S::kBlock && head + S::kBlock <= count; ++head) {
    if (!lies(dst, sizeof(typename S::D), head) || !lies(a, sizeof(typename S::A), head)) continue;
    if (S::kBinary && !lies(b, sizeof(typename S::B), head)) continue;
    return {count, head, (count - head) / S::kBlock};
  }
  return {count, 0, 0};
}

// ---- operations

// d = ((a * before) op b) * after. Multiplying by 1 changes no bit that store() would keep.
template <ReduceOp op, class T, class Other>
struct Reduction {
  using D = T;
  using A = T;
  using B = Other;
  using C = Computed<T>;
  C before;
  C after;

  PYCOMM_EVERYWHERE void operator()(void* dst, const void* a, const void* b, std::int64_t i) const {
    C x = load<Portable, T, C, 1>(a, i);
    const C y = load<Portable, Other, C, 1>(b, i);
    if constexpr (std::is_floating_point_v<C>) x = x * before;
    C result = combine<op, C, 1>(x, y);
    if constexpr (std::is_floating_point_v<C>) result = result * after;
    store<Portable, T, C, 1>(dst, i, result);
  }
};

template <class From, class To>
struct Conversion {
  using D = To;
  using A = From;
  using B = Nothing;
  using C = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
  C factor;

  PYCOMM_EVERYWHERE void operator()(void* dst, const void* src, const void*, std::int64_t i) const {
    store<Portable, To, C, 1>(dst, i, load<Portable, From, C, 1>(src, i) * factor);
  }
};

template <class T>
struct Division {
  using D = T;
  using A = T;
  using B = Nothing;
  std::int64_t divisor;
  double divisor_as_f64;

  PYCOMM_EVERYWHERE void operator()(void* dst, const void* src, const void*, std::int64_t i) const {
    write<T, 1>(dst, i, quotient(read<T, 1>(src, i), divisor, divisor_as_f64));
  }
};

}  // namespace
}  // namespace pycomm
