#include "codec/half_wire.h"

namespace pycomm {

static const Register<Codec> kBf16(
    HalfWire<DType::bf16>::codec("bfloat16: 2 bytes, 8 significant bits, the range of f32",
                                 {.unit = 0x1p-8, .smallest = 0x1p-133, .largest = 0x1.fep127}));

}  // namespace pycomm
