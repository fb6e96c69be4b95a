#include "codec/half_wire.h"

namespace pycomm {

static const Register<Codec> kFp16(HalfWire<DType::f16>::codec(
    "IEEE half precision: 2 bytes, 11 significant bits, overflows to inf at 65520",
    {.unit = 0x1p-11, .smallest = 0x1p-24, .largest = 65504}));

}  // namespace pycomm
