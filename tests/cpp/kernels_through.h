// A table of kernels of which every entry calls that of a StreamKernels, so that the cases of kernel_cases.h
// serve both. How the operands get there and the result back is Through's to say:
//   static const StreamKernels& Through::table()
//   static void Through::call(Placed dst, Placed a, Placed b, run), where run(dst, a, b, Stream&) is the
//   entry
// of the table; dst may be where an operand is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/stream_kernels.h"

namespace pycomm {

struct Placed {
  const void* data = nullptr;
  std::size_t bytes = 0;
};

template <class Through>
struct KernelsThrough {
  static std::size_t bytes(std::int64_t count, int type) {
    return static_cast<std::size_t>(count * size_of(static_cast<DType>(type)));
  }

  template <int type, int op>
  static void reduce(void* dst, const void* a, const void* b, std::int64_t count, Scales scales) {
    const std::size_t size = bytes(count, type);
    Through::call({dst, size}, {a, size}, {b, size}, [&](void* to, const void* x, const void* y, Stream& s) {
      Through::table().reduce[type][op](to, x, y, count, scales, s);
    });
  }
  template <int wire_is_bf16, int acc_is_f32, int op>
  static void decode_reduce(void* dst, const void* acc, const void* wire, std::int64_t count, Scales scales) {
    const std::size_t size = bytes(count, index_of(acc_is_f32 ? DType::f32 : DType::f64));
    Through::call({dst, size}, {acc, size}, {wire, bytes(count, index_of(DType::f16))},
                  [&](void* to, const void* x, const void* y, Stream& s) {
                    Through::table().decode_reduce[wire_is_bf16][acc_is_f32][op](to, x, y, count, scales, s);
                  });
  }
  template <int from, int to>
  static void cast(void* dst, const void* src, std::int64_t count, double factor) {
    Through::call({dst, bytes(count, to)}, {src, bytes(count, from)}, {},
                  [&](void* d, const void* x, const void*, Stream& s) {
                    Through::table().cast[from][to](d, x, count, factor, s);
                  });
  }
  template <int type>
  static void scale(void* dst, const void* src, std::int64_t count, double factor) {
    Through::call({dst, bytes(count, type)}, {src, bytes(count, type)}, {},
                  [&](void* d, const void* x, const void*, Stream& s) {
                    Through::table().scale[type](d, x, count, factor, s);
                  });
  }
  template <int type>
  static void divide(void* dst, const void* src, std::int64_t count, std::int64_t divisor) {
    Through::call({dst, bytes(count, type)}, {src, bytes(count, type)}, {},
                  [&](void* d, const void* x, const void*, Stream& s) {
                    Through::table().divide[type](d, x, count, divisor, s);
                  });
  }

  template <int... n, class Body>
  static void each(std::integer_sequence<int, n...>, Body body) {
    (body(std::integral_constant<int, n>{}), ...);
  }
  template <int count, class Body>
  static void each(Body body) {
    each(std::make_integer_sequence<int, count>{}, body);
  }

  static Kernels make(const char* name) {
    Kernels table{};
    table.isa = name;
    each<kKernelOpCount>([&](auto op) {
      each<kDTypeCount>([&](auto type) { table.reduce[type][op] = reduce<type, op>; });
      each<2>([&](auto wire) {
        each<2>([&](auto acc) { table.decode_reduce[wire][acc][op] = decode_reduce<wire, acc, op>; });
      });
    });
    each<4>([&](auto from) {
      table.scale[from] = scale<from>;
      each<4>([&](auto to) { table.cast[from][to] = cast<from, to>; });
    });
    each<4>([&](auto type) { table.divide[4 + type] = divide<4 + type>; });
    return table;
  }
};

}  // namespace pycomm
