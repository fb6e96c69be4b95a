// Codecs whose wire is a 16-bit floating type: each f32 or f64 element is rounded once to it.
#pragma once

#include <string>

#include "codec/codec.h"
#include "core/error.h"

namespace pycomm {

template <DType wire_type>
struct HalfWire {
  static void require_float(DType dtype) {
    PYCOMM_CHECK(dtype == DType::f32 || dtype == DType::f64, "codec ", wire_name(), ": cannot carry ",
                 name_of(dtype), "; supported: f32, f64");
  }

  static std::int64_t wire_bytes(std::int64_t count, DType dtype) {
    require_float(dtype);
    return count * size_of(wire_type);
  }

  static void encode(const View& src, std::byte* wire, double scale) {
    require_float(src.dtype);
    kernels().cast[index_of(src.dtype)][index_of(wire_type)](wire, src.data, src.count, scale);
  }

  static void decode(const std::byte* wire, const View& dst) {
    require_float(dst.dtype);
    kernels().cast[index_of(wire_type)][index_of(dst.dtype)](dst.data, wire, dst.count, 1.0);
  }

  static void decode_reduce(const View& dst, const View& acc, const std::byte* wire, Scales scales) {
    require_float(dst.dtype);
    PYCOMM_DCHECK(dst.count == acc.count && dst.dtype == acc.dtype);
    const auto& of_wire = kernels().decode_reduce[wire_type == DType::bf16 ? 1 : 0];
    const auto& of_acc = of_wire[dst.dtype == DType::f32 ? 1 : 0];
    of_acc[index_of(ReduceOp::sum)](dst.data, acc.data, wire, dst.count, scales);
  }

  static std::string wire_name() { return wire_type == DType::f16 ? "fp16" : "bf16"; }

  static Codec codec(std::string summary, Precision precision) {
    return {.name = wire_name(),
            .summary = std::move(summary),
            .precision = precision,
            .wire_bytes = wire_bytes,
            .encode = encode,
            .decode = decode,
            .decode_reduce = decode_reduce};
  }
};

}  // namespace pycomm
