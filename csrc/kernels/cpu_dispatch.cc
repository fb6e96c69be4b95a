// Which table runs: what the compiler built, the machine can run, and PYCOMM_ISA asks for. The one kernel
// file that is compiled for the plain architecture and knows about processors.
#include <cstdlib>
#include <string>

#include "core/error.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace pycomm {

// One per cpu_*.cc; null where that file was compiled without its instructions.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

namespace {

#if defined(__x86_64__)
constexpr unsigned kDefaultMxcsr = 0x1f80;  // exceptions masked, to nearest even, denormals kept

unsigned float_control() {
  return _mm_getcsr();
}
void set_float_control(unsigned control) {
  _mm_setcsr(control);
}

// These also ask whether the operating system saves the registers.
bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
}
bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#else
constexpr unsigned kDefaultMxcsr = 0;

unsigned float_control() {
  return 0;
}
void set_float_control(unsigned) {}

bool runs_avx2() {
  return false;
}
bool runs_avx512() {
  return false;
}
#endif

std::vector<const Kernels*> find_kernels() {
  std::vector<const Kernels*> found = {scalar_kernels()};
  if (avx2_kernels() != nullptr && runs_avx2()) found.push_back(avx2_kernels());
  if (avx512_kernels() != nullptr && runs_avx512()) found.push_back(avx512_kernels());
  return found;
}

const Kernels& choose_kernels() {
  const char* name = std::getenv("PYCOMM_ISA");
  if (name == nullptr || *name == '\0') return *available_kernels().back();
  try {
    return kernels_named(name);
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(text("PYCOMM_ISA: ", error.what()));
  }
}

}  // namespace

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> found = find_kernels();
  return found;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

const Kernels& kernels_named(std::string_view isa) {
  std::string available;
  for (const Kernels* table : available_kernels()) {
    if (table->isa == isa) return *table;
    available += text(available.empty() ? "" : ", ", table->isa);
  }
  throw InvalidArgument(text("no kernels '", isa, "' on this machine; available: ", available));
}

void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

FloatMode::FloatMode() : saved_(float_control()) {
  set_float_control(kDefaultMxcsr);
}
FloatMode::~FloatMode() {
  set_float_control(saved_);
}

}  // namespace pycomm
