// Element types, and the reductions over them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pycomm {

enum class DType : std::uint8_t { f64, f32, f16, bf16, i64, i32, u8, i8 };
inline constexpr int kDTypeCount = 8;
inline constexpr std::array<std::string_view, kDTypeCount> kDTypeNames = {"f64", "f32", "f16", "bf16",
                                                                          "i64", "i32", "u8",  "i8"};

// avg is a sum that is scaled by 1/size (floating point) or divided by size (integers) at the end; the
// kernels know only the four others.
enum class ReduceOp : std::uint8_t { sum, prod, min, max, avg };
inline constexpr int kReduceOpCount = 5;
inline constexpr int kKernelOpCount = 4;
inline constexpr std::array<std::string_view, kReduceOpCount> kReduceOpNames = {"sum", "prod", "min", "max",
                                                                                "avg"};

constexpr int index_of(DType dtype) {
  return static_cast<int>(dtype);
}
constexpr int index_of(ReduceOp op) {
  return static_cast<int>(op);
}
constexpr std::string_view name_of(DType dtype) {
  return kDTypeNames[index_of(dtype)];
}
constexpr std::string_view name_of(ReduceOp op) {
  return kReduceOpNames[index_of(op)];
}

constexpr std::int64_t size_of(DType dtype) {
  constexpr std::array<std::int64_t, kDTypeCount> kSizes = {8, 4, 2, 2, 8, 4, 1, 1};
  return kSizes[index_of(dtype)];
}

constexpr bool is_floating(DType dtype) {
  return index_of(dtype) <= index_of(DType::bf16);
}
constexpr bool is_half(DType dtype) {
  return dtype == DType::f16 || dtype == DType::bf16;
}

// Throw InvalidArgument listing the known names (error.cc).
DType dtype_from_name(std::string_view name);
ReduceOp reduce_op_from_name(std::string_view name);

}  // namespace pycomm
