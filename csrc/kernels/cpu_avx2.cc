// The loops for AVX2 with F16C, compiled with those flags; without them this file yields no table. Whether
// the machine can run it is for the caller to know: nothing here may be called before.
#include "kernels/kernels.h"

#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>

#include "kernels/loops-inl.h"

namespace pycomm {
namespace {

struct Avx2 : Portable {
  static constexpr const char* kName = "avx2";
  static constexpr int kVectorBytes = 32;
  using F32 = Pack<float, 8>;
  using U32 = Pack<std::uint32_t, 8>;
  using U16 = Pack<std::uint16_t, 8>;

  static void store_past_caches(void* to, const void* from) {
    _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_loadu_si256(static_cast<const __m256i*>(from)));
  }

  using Portable::f16_from_f32;
  using Portable::f32_from_f16;
  using Portable::narrow;
  using Portable::widen;
  static U32 widen(U16 x) { return bits_as<U32>(_mm256_cvtepu16_epi32(bits_as<__m128i>(x))); }
  static U16 narrow(U32 x) {
    const __m128i low = _mm256_castsi256_si128(bits_as<__m256i>(x));
    const __m128i high = _mm256_extracti128_si256(bits_as<__m256i>(x), 1);
    return bits_as<U16>(_mm_packus_epi32(low, high));
  }
  static F32 f32_from_f16(U16 x) { return _mm256_cvtph_ps(bits_as<__m128i>(x)); }
  static U16 f16_from_f32(F32 x) {
    return bits_as<U16>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // Half a register, beside f64.
  static Pack<float, 4> f32_from_f16(Pack<std::uint16_t, 4> x) {
    return _mm_cvtph_ps(_mm_cvtsi64_si128(bits_as<long long>(x)));
  }
  static Pack<std::uint16_t, 4> f16_from_f32(Pack<float, 4> x) {
    const __m128i half = _mm_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return bits_as<Pack<std::uint16_t, 4>>(_mm_cvtsi128_si64(half));
  }
};
constexpr Kernels kTable = make_kernels<Avx2>();

}  // namespace

const Kernels* avx2_kernels() {
  return &kTable;
}

}  // namespace pycomm
#else
namespace pycomm {
const Kernels* avx2_kernels() {
  return nullptr;
}
}  // namespace pycomm
#endif
