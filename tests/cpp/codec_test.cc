// What every codec promises, and what each refuses. Exact inputs, so equality.
#include "codec/codec.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "check.h"
#include "core/error.h"

namespace pycomm {
namespace {

constexpr std::array kDTypes = {DType::f64, DType::f32, DType::f16, DType::bf16,
                                DType::i64, DType::i32, DType::u8,  DType::i8};
constexpr std::int64_t kCounts[] = {0, 1, 15, 16, 17, 257};

bool carries(const Codec& codec, DType dtype) {
  return codec.name == "none" || dtype == DType::f32 || dtype == DType::f64;
}

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == 8 ? DType::f64 : DType::f32;
}

template <class T>
View view_of(std::vector<T>& values) {
  return {reinterpret_cast<std::byte*>(values.data()), static_cast<std::int64_t>(values.size()),
          dtype_of<T>()};
}

// Small multiples of 1/4 that the codec's precision makes exact.
template <class T>
std::vector<T> exact_values(const Codec& codec, std::int64_t count, int step) {
  const double digits = codec.lossless ? 1e9 : 1 / codec.precision.unit;
  const auto most = static_cast<std::int64_t>(std::min(30.0, digits));
  std::vector<T> out;
  for (std::int64_t i = 0; i < count; ++i)
    out.push_back(static_cast<T>((i * step) % (2 * most + 1) - most) / 4);
  return out;
}

// A wire at an odd address, with a guard byte behind it.
struct Wire {
  explicit Wire(std::int64_t bytes) : memory(static_cast<std::size_t>(bytes) + 2, std::byte{0x5a}) {}
  std::byte* data() { return memory.data() + 1; }
  bool guarded() const { return memory.front() == std::byte{0x5a} && memory.back() == std::byte{0x5a}; }
  std::vector<std::byte> memory;
};

template <class T>
void check_round_trip(const Codec& codec, std::int64_t count, double scale) {
  std::vector<T> src = exact_values<T>(codec, count, 7);
  const std::vector<T> original = src;
  std::vector<T> dst(src.size(), T{-1});
  Wire wire(codec.wire_bytes(count, dtype_of<T>()));
  codec.encode(view_of(src), wire.data(), scale);
  codec.decode(wire.data(), view_of(dst));
  CHECK(wire.guarded());
  CHECK(src == original);
  for (std::size_t i = 0; i < src.size(); ++i) CHECK_EQ(dst[i], src[i] * static_cast<T>(scale), codec.name);
}

template <class T>
void check_decode_reduce(const Codec& codec, std::int64_t count, Scales scales) {
  std::vector<T> src = exact_values<T>(codec, count, 7);
  std::vector<T> acc = exact_values<T>(codec, count, 11);
  std::vector<T> dst(src.size(), T{-1});
  Wire wire(codec.wire_bytes(count, dtype_of<T>()));
  codec.encode(view_of(src), wire.data(), 1.0);
  codec.decode_reduce(view_of(dst), view_of(acc), wire.data(), scales);
  CHECK(wire.guarded());
  for (std::size_t i = 0; i < src.size(); ++i)
    CHECK_EQ(dst[i], (acc[i] * static_cast<T>(scales.a) + src[i]) * static_cast<T>(scales.result),
             codec.name);
  codec.decode_reduce(view_of(acc), view_of(acc), wire.data(), scales);
  CHECK(acc == dst);
}

// The wire of one f32.
std::vector<std::byte> encoded(const Codec& codec, float value, double scale = 1.0) {
  std::vector<float> src = {value};
  std::vector<std::byte> wire(static_cast<std::size_t>(codec.wire_bytes(1, DType::f32)));
  codec.encode(view_of(src), wire.data(), scale);
  return wire;
}

std::vector<std::byte> half_bits(unsigned bits) {
  return {std::byte(bits & 0xff), std::byte(bits >> 8)};
}

}  // namespace

TEST(codecs_are_registered_with_all_functions) {
  for (const char* shipped : {"bf16", "fp16", "none"}) CHECK(Registry<Codec>::instance().find(shipped));
  for (const Codec* codec : Registry<Codec>::instance().all()) {
    CHECK(!codec->summary.empty() && codec->summary.find('\n') == std::string::npos);
    CHECK(codec->wire_bytes && codec->encode && codec->decode && codec->decode_reduce);
    CHECK_EQ(codec->lossless, codec->name == "none");
    const auto [unit, smallest, largest] = codec->precision;
    CHECK(codec->lossless ? unit == 0 : 0 < smallest && smallest < unit && unit < 1 && 1 < largest);
  }
  CHECK_THROWS(codec_named("zip"), InvalidArgument, "known: " + Registry<Codec>::instance().names());
}

TEST(codecs_say_their_wire_bytes_or_refuse_the_dtype) {
  for (const Codec* codec : Registry<Codec>::instance().all())
    for (DType dtype : kDTypes) {
      std::byte element[8] = {};
      const View one{element, 1, dtype};
      if (carries(*codec, dtype)) {
        const std::int64_t whole = 5 * size_of(dtype);
        CHECK(codec->lossless ? codec->wire_bytes(5, dtype) == whole : codec->wire_bytes(5, dtype) < whole);
        CHECK_EQ(codec->wire_bytes(0, dtype), 0);
        continue;
      }
      const std::string expected = "cannot carry " + std::string(name_of(dtype)) + "; supported: f32, f64";
      CHECK_THROWS(codec->wire_bytes(5, dtype), InvalidArgument, expected);
      CHECK_THROWS(codec->encode(one, element, 1.0), InvalidArgument, expected);
      CHECK_THROWS(codec->decode(element, one), InvalidArgument, expected);
      CHECK_THROWS(codec->decode_reduce(one, one, element, {}), InvalidArgument, codec->name);
    }
}

TEST(codecs_round_trip_exact_values) {
  for (const Codec* codec : Registry<Codec>::instance().all())
    for (std::int64_t count : kCounts)
      for (double scale : {1.0, 0.5}) {
        check_round_trip<float>(*codec, count, scale);
        check_round_trip<double>(*codec, count, scale);
      }
}

TEST(codecs_decode_and_reduce_in_one_pass) {
  for (const Codec* codec : Registry<Codec>::instance().all())
    for (std::int64_t count : kCounts)
      for (Scales scales : {Scales{}, Scales{.a = 0.5}, Scales{.result = 0.25}, Scales{2.0, 0.5}}) {
        check_decode_reduce<float>(*codec, count, scales);
        check_decode_reduce<double>(*codec, count, scales);
      }
}

TEST(codec_none_moves_every_dtype_unchanged) {
  const Codec& none = codec_named("none");
  for (DType dtype : kDTypes) {
    std::array<std::byte, 256 * 8> src, wire{}, dst{};
    for (std::size_t i = 0; i < src.size(); ++i)
      src[i] = std::byte(i * 37 + i / 256);  // NaNs of all kinds among them
    const View from{src.data(), static_cast<std::int64_t>(src.size()) / size_of(dtype), dtype};
    const View to{dst.data(), from.count, dtype};
    none.encode(from, wire.data(), 1.0);
    CHECK(wire == src);
    none.decode(wire.data(), to);
    CHECK(dst == src);
  }
}

TEST(codec_none_scales_floats_and_leaves_integers) {
  const Codec& none = codec_named("none");
  std::array<std::int32_t, 3> src = {7, -7, 1 << 30}, wire{};
  none.encode({reinterpret_cast<std::byte*>(src.data()), 3, DType::i32},
              reinterpret_cast<std::byte*>(wire.data()), 0.5);
  CHECK(wire == src);
  std::array<std::uint16_t, 2> half = {0x3c00, 0x0001}, half_wire{};  // 1 and the smallest f16
  none.encode({reinterpret_cast<std::byte*>(half.data()), 2, DType::f16},
              reinterpret_cast<std::byte*>(half_wire.data()), 0.5);
  CHECK((half_wire == std::array<std::uint16_t, 2>{0x3800, 0x0000}));
}

TEST(codecs_of_16_bits_scale_before_they_round) {
  const Codec& fp16 = codec_named("fp16");
  CHECK(encoded(fp16, 65519.0f) == half_bits(0x7bff));
  CHECK(encoded(fp16, 65520.0f) == half_bits(0x7c00));  // overflow is infinite, never clamped
  CHECK(encoded(fp16, 131008.0f, 0.5) == half_bits(0x7bff));
  CHECK(encoded(fp16, -0x1p-24f) == half_bits(0x8001));
  const Codec& bf16 = codec_named("bf16");
  CHECK(encoded(bf16, 1.0f + 0x1p-8f) == half_bits(0x3f80));
  CHECK(encoded(bf16, 1.0f + 0x1p-8f + 0x1p-23f) == half_bits(0x3f81));
  CHECK(encoded(bf16, -0.0f) == half_bits(0x8000));
}

TEST(codecs_of_16_bits_send_one_kind_of_nan) {
  for (std::uint32_t bits : {0x7f800001u, 0x7fc00000u, 0xffc00000u, 0xff812345u, 0x7fffffffu}) {
    float nan;
    std::memcpy(&nan, &bits, sizeof(nan));
    CHECK(encoded(codec_named("fp16"), nan) == half_bits(0x7e00));
    CHECK(encoded(codec_named("bf16"), nan) == half_bits(0x7fc0));
  }
}

}  // namespace pycomm
