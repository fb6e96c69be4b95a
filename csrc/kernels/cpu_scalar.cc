// The loops for any machine, and the reference that the other instruction sets agree with bit for bit.
#include "kernels/loops-inl.h"

namespace pycomm {
namespace {

struct Scalar : Portable {
  static constexpr const char* kName = "scalar";
};
constexpr Kernels kTable = make_kernels<Scalar>();

}  // namespace

const Kernels* scalar_kernels() {
  return &kTable;
}

}  // namespace pycomm
