// A codec turns elements into the bytes that travel and back. Each is one file that registers a Codec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/registry.h"
#include "core/view.h"
#include "kernels/kernels.h"

namespace pycomm {

// What a value suffers on a lossy wire: it becomes the nearest number of that format. Bounds of a sum's error
// follow from it (the conformance tests derive theirs).
struct Precision {
  double unit = 0;      // half the distance from 1 to the next number
  double smallest = 0;  // positive number
  double largest = 0;   // finite number
};

// Functions, not an object: a codec here has no state. All pointers are host memory; wires need no alignment.
struct Codec {
  std::string name;
  std::string summary;
  bool lossless = false;     // the wire holds the elements unchanged; the executor sends them in place
  Precision precision = {};  // of a lossy one

  std::int64_t (*wire_bytes)(std::int64_t count, DType dtype) = nullptr;
  // wire = Q(src * scale)
  void (*encode)(const View& src, std::byte* wire, double scale) = nullptr;
  // dst = decode(wire)
  void (*decode)(const std::byte* wire, const View& dst) = nullptr;
  // dst = (acc * scales.a + decode(wire)) * scales.result; dst and acc have equal count and dtype and may be
  // the same
  void (*decode_reduce)(const View& dst, const View& acc, const std::byte* wire, Scales scales) = nullptr;
};

inline const Codec& codec_named(std::string_view name) {
  return Registry<Codec>::instance().get(name, "codec");
}

// Bytes that travel per byte of data.
inline double wire_ratio(const Codec& codec, DType dtype) {
  return static_cast<double>(codec.wire_bytes(1024, dtype)) / (1024 * size_of(dtype));
}

}  // namespace pycomm
