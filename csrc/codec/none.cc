// The elements as they are, of any type. As in the kernels, integers ignore scales.
#include <cstring>

#include "codec/codec.h"
#include "core/error.h"

namespace pycomm {
namespace {

void copy_bytes(void* to, const void* from, std::int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

std::int64_t wire_bytes(std::int64_t count, DType dtype) {
  return count * size_of(dtype);
}

void encode(const View& src, std::byte* wire, double scale) {
  if (scale == 1.0 || !is_floating(src.dtype)) return copy_bytes(wire, src.data, src.bytes());
  kernels().scale[index_of(src.dtype)](wire, src.data, src.count, scale);
}

void decode(const std::byte* wire, const View& dst) {
  copy_bytes(dst.data, wire, dst.bytes());
}

void decode_reduce(const View& dst, const View& acc, const std::byte* wire, Scales scales) {
  PYCOMM_DCHECK(dst.count == acc.count && dst.dtype == acc.dtype);
  const auto sum = kernels().reduce[index_of(dst.dtype)][index_of(ReduceOp::sum)];
  sum(dst.data, acc.data, wire, dst.count, scales);
}

const Register<Codec> kNone(Codec{.name = "none",
                                  .summary = "the elements unchanged",
                                  .lossless = true,
                                  .wire_bytes = wire_bytes,
                                  .encode = encode,
                                  .decode = decode,
                                  .decode_reduce = decode_reduce});

}  // namespace
}  // namespace pycomm
