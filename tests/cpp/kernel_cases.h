// Every entry of a table of kernels as a case to run, and the comparison with the scalar table: at every
// length, in any alignment, in place and apart, with nothing written beside the result.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "float_format.h"
#include "kernels/kernels.h"

namespace pycomm {

inline constexpr std::array kOps = {ReduceOp::sum, ReduceOp::prod, ReduceOp::min, ReduceOp::max};
inline constexpr std::array kDTypes = {DType::f64, DType::f32, DType::f16, DType::bf16,
                                       DType::i64, DType::i32, DType::u8,  DType::i8};
inline constexpr std::array kFloats = {DType::f64, DType::f32, DType::f16, DType::bf16};

using Bytes = std::vector<std::byte>;

// Little endian, as all machines that this runs on.
inline Bytes pack(const Bits& values, DType dtype) {
  const auto size = static_cast<std::size_t>(size_of(dtype));
  Bytes out(values.size() * size);
  for (std::size_t i = 0; i < values.size(); ++i) std::memcpy(out.data() + i * size, &values[i], size);
  return out;
}

inline Bits unpack(const Bytes& bytes, DType dtype) {
  const auto size = static_cast<std::size_t>(size_of(dtype));
  Bits out(bytes.size() / size);
  for (std::size_t i = 0; i < out.size(); ++i) std::memcpy(&out[i], bytes.data() + i * size, size);
  return out;
}

// One entry of the tables, with scales.
struct Case {
  std::string name;
  DType dst;
  DType a;
  DType b;
  int operands;  // 1: b is not read
  std::function<void(const Kernels&, void* dst, const void* a, const void* b, std::int64_t count)> run;
};

inline constexpr double kFactors[] = {1.0, 0.3};

inline std::vector<Case> reduce_cases(DType dtype, ReduceOp op) {
  std::vector<Case> out;
  for (double before : kFactors)
    for (double after : kFactors)
      out.push_back({text("reduce ", name_of(dtype), " ", name_of(op), " ", before, " ", after), dtype, dtype,
                     dtype, 2,
                     [=](const Kernels& k, void* dst, const void* a, const void* b, std::int64_t count) {
                       k.reduce[index_of(dtype)][index_of(op)](dst, a, b, count, {before, after});
                     }});
  return out;
}

inline std::vector<Case> reduce_streamed_cases(DType dtype, ReduceOp op) {
  std::vector<Case> out;
  for (double after : kFactors)
    out.push_back({text("reduce_streamed ", name_of(dtype), " ", name_of(op), " ", after), dtype, dtype,
                   dtype, 2,
                   [=](const Kernels& k, void* dst, const void* a, const void* b, std::int64_t count) {
                     const bool in_place = dst == a || dst == b;  // which is the other kernels' alone
                     const auto& reduce = in_place ? k.reduce : k.reduce_streamed;
                     reduce[index_of(dtype)][index_of(op)](dst, a, b, count, {1.0, after});
                     stream_fence();
                   }});
  return out;
}

inline std::vector<Case> decode_reduce_cases(DType acc, DType wire, ReduceOp op) {
  std::vector<Case> out;
  for (double before : kFactors)
    for (double after : kFactors)
      out.push_back({text("decode_reduce ", name_of(acc), " ", name_of(wire), " ", name_of(op), " ", before,
                          " ", after),
                     acc, acc, wire, 2,
                     [=](const Kernels& k, void* dst, const void* a, const void* b, std::int64_t count) {
                       const auto& of_wire = k.decode_reduce[wire == DType::bf16 ? 1 : 0];
                       of_wire[acc == DType::f32 ? 1 : 0][index_of(op)](dst, a, b, count, {before, after});
                     }});
  return out;
}

inline std::vector<Case> cast_cases(DType from, DType to) {
  std::vector<Case> out;
  for (double factor : kFactors)
    out.push_back({text("cast ", name_of(from), " ", name_of(to), " ", factor), to, from, from, 1,
                   [=](const Kernels& k, void* dst, const void* a, const void*, std::int64_t count) {
                     k.cast[index_of(from)][index_of(to)](dst, a, count, factor);
                   }});
  return out;
}

inline std::vector<Case> scale_cases(DType dtype) {
  std::vector<Case> out;
  for (double factor : kFactors)
    out.push_back({text("scale ", name_of(dtype), " ", factor), dtype, dtype, dtype, 1,
                   [=](const Kernels& k, void* dst, const void* a, const void*, std::int64_t count) {
                     k.scale[index_of(dtype)](dst, a, count, factor);
                   }});
  return out;
}

inline std::vector<Case> divide_cases(DType dtype) {
  std::vector<Case> out;
  for (std::int64_t divisor : {1, 3, 128})
    out.push_back({text("divide ", name_of(dtype), " ", divisor), dtype, dtype, dtype, 1,
                   [=](const Kernels& k, void* dst, const void* a, const void*, std::int64_t count) {
                     k.divide[index_of(dtype)](dst, a, count, divisor);
                   }});
  return out;
}

// Without those past the caches, which not every table has.
inline std::vector<Case> cases() {
  std::vector<Case> out;
  const auto add = [&out](std::vector<Case> more) {
    std::move(more.begin(), more.end(), std::back_inserter(out));
  };
  for (DType dtype : kDTypes) {
    for (ReduceOp op : kOps) add(reduce_cases(dtype, op));
    add(is_floating(dtype) ? scale_cases(dtype) : divide_cases(dtype));
  }
  for (DType from : kFloats)
    for (DType to : kFloats) add(cast_cases(from, to));
  for (DType acc : {DType::f64, DType::f32})
    for (DType wire : {DType::f16, DType::bf16})
      for (ReduceOp op : kOps) add(decode_reduce_cases(acc, wire, op));
  return out;
}

inline std::vector<Case> all_cases() {
  std::vector<Case> out = cases();
  for (DType dtype : kDTypes)
    for (ReduceOp op : kOps)
      for (Case& c : reduce_streamed_cases(dtype, op))
        if (!is_half(dtype)) out.push_back(std::move(c));
  return out;
}

// Memory with room for 64 different alignments, and guard bytes around what is used.
class Arena {
 public:
  std::byte* place(const Bytes& contents, std::int64_t offset) {
    std::memset(bytes_, kGuard, kSize);
    return std::copy(contents.begin(), contents.end(), bytes_ + 64 + offset) - contents.size();
  }
  bool holds_only(const std::byte* at, const Bytes& contents) const {
    static const Bytes guards(kSize, std::byte{kGuard});
    const auto before = static_cast<std::size_t>(at - bytes_);
    const auto used = before + contents.size();
    return std::memcmp(bytes_, guards.data(), before) == 0 &&
           std::memcmp(bytes_ + used, guards.data(), kSize - used) == 0 &&
           std::equal(contents.begin(), contents.end(), at);
  }

 private:
  static constexpr unsigned char kGuard = 0xa5;
  static constexpr std::size_t kSize = 64 + 64 + 257 * 8 + 64;
  alignas(64) std::byte bytes_[kSize];
};

inline Bytes run_scalar(const Case& c, const Bytes& a, const Bytes& b, std::int64_t count) {
  Bytes out(static_cast<std::size_t>(count * size_of(c.dst)));
  c.run(*available_kernels().front(), out.data(), a.data(), b.data(), count);
  return out;
}

inline Bits run(const Kernels& table, const Case& c, const Bits& a, const Bits& b) {
  Bytes out(a.size() * static_cast<std::size_t>(size_of(c.dst)));
  c.run(table, out.data(), pack(a, c.a).data(), pack(b, c.b).data(), static_cast<std::int64_t>(a.size()));
  return unpack(out, c.dst);
}

inline void compare_with_scalar(const Kernels& table, const Case& c) {
  Random random(7);
  Arena to, first, second;
  for (std::int64_t count = 0; count <= 257; ++count) {
    const Bytes a = pack(random_values(c.a, count, random), c.a);
    const Bytes b = pack(random_values(c.b, count, random), c.b);
    const Bytes expected = run_scalar(c, a, b, count);
    const auto place_a = [&] { return first.place(a, random.below(64)); };
    const auto place_b = [&] { return second.place(b, random.below(64)); };
    const auto check_result = [&](const std::byte* dst, const char* where) {
      if (!to.holds_only(dst, expected))
        check::fail(__FILE__, __LINE__, table.isa, " differs from scalar: ", c.name, ", ", where, ", count ",
                    count);
      ++check::checks();
    };
    for (int k = 0; k < 8; ++k) {
      std::byte* dst = to.place(Bytes(expected.size()), random.below(64));
      c.run(table, dst, place_a(), place_b(), count);
      check_result(dst, "apart");
    }
    if (c.dst == c.a) {
      std::byte* dst = to.place(a, random.below(64));
      c.run(table, dst, dst, place_b(), count);
      check_result(dst, "over a");
    }
    if (c.operands == 2 && c.dst == c.b) {
      std::byte* dst = to.place(b, random.below(64));
      c.run(table, dst, place_a(), dst, count);
      check_result(dst, "over b");
    }
  }
}

inline void compare_casts_of_all_16_bit_patterns(const Kernels& table) {
  Bits all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
  for (const DType half : {DType::f16, DType::bf16})
    for (const DType to : kFloats)
      for (const Case& c : cast_cases(half, to))
        CHECK(run(table, c, all, all) == run(*available_kernels().front(), c, all, all));
}

}  // namespace pycomm
