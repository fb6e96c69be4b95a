// The loops for AVX-512 (F, BW, VL, DQ), compiled with those flags; without them this file yields no table.
// Whether the machine can run it is for the caller to know: nothing here may be called before.
#include "kernels/kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>

#include "kernels/loops-inl.h"

namespace pycomm {
namespace {

// Where an instruction is masked with all lanes, which costs nothing, it is because g++ 12 warns of the plain
// form that it reads an undefined register.
struct Avx512 : Portable {
  static constexpr const char* kName = "avx512";
  static constexpr int kVectorBytes = 64;
  using F32 = Pack<float, 16>;
  using U32 = Pack<std::uint32_t, 16>;
  using U16 = Pack<std::uint16_t, 16>;

  static void store_past_caches(void* to, const void* from) {
    _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
  }

  using Portable::f16_from_f32;
  using Portable::f32_from_f16;
  using Portable::narrow;
  using Portable::widen;
  static U32 widen(U16 x) { return bits_as<U32>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(x))); }
  static U16 narrow(U32 x) { return bits_as<U16>(_mm512_maskz_cvtepi32_epi16(0xffff, bits_as<__m512i>(x))); }
  static F32 f32_from_f16(U16 x) { return _mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(x)); }
  static U16 f16_from_f32(F32 x) {
    return bits_as<U16>(_mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // Half a register, beside f64.
  static Pack<float, 8> f32_from_f16(Pack<std::uint16_t, 8> x) {
    return _mm256_cvtph_ps(bits_as<__m128i>(x));
  }
  static Pack<std::uint16_t, 8> f16_from_f32(Pack<float, 8> x) {
    return bits_as<Pack<std::uint16_t, 8>>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};
constexpr Kernels kTable = make_kernels<Avx512>();

}  // namespace

const Kernels* avx512_kernels() {
  return &kTable;
}

}  // namespace pycomm
#else
namespace pycomm {
const Kernels* avx512_kernels() {
  return nullptr;
}
}  // namespace pycomm
#endif
