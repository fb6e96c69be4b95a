#include "codec/half_wire.h"

namespace pycomm {

static const Register<Codec> kBf16(
    HalfWire<DType::bf16>::codec("bfloat16: 2 bytes, 8 significant bits, the range of f32"));

}  // namespace pycomm
