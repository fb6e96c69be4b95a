// Answers of the CUDA runtime, as exceptions.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include "core/error.h"

namespace pycomm {

// Throws TransportError: what was tried, and what CUDA says of it.
inline void check_cuda(cudaError_t answer, const char* what) {
  if (answer == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // else the next call would be told of it again
  throw TransportError(
      text("CUDA: ", what, ": ", cudaGetErrorString(answer), " (", cudaGetErrorName(answer), ")"));
}

// Whether this process has a context on that card. To ask the driver makes none; the runtime has loaded it.
inline bool has_context(int card) {
  using GetState = int (*)(int card, unsigned* flags, int* active);
  static const auto get_state = [] {
    void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    return driver ? reinterpret_cast<GetState>(dlsym(driver, "cuDevicePrimaryCtxGetState")) : nullptr;
  }();
  unsigned flags = 0;
  int active = 0;
  return get_state && get_state(card, &flags, &active) == 0 && active != 0;
}

// Makes a card the current one of this thread, and restores the one before if it is in use: choosing a card
// makes a context there, hundreds of megabytes, and card 0 is the current one of every new thread.
class CurrentCard {
 public:
  explicit CurrentCard(int card) {
    check_cuda(cudaGetDevice(&before_), "asking for the current card");
    if (before_ == card) return;
    restores_ = has_context(before_);
    check_cuda(cudaSetDevice(card), "choosing a card");
  }
  ~CurrentCard() {
    if (restores_) static_cast<void>(cudaSetDevice(before_));
  }
  CurrentCard(const CurrentCard&) = delete;
  CurrentCard& operator=(const CurrentCard&) = delete;

 private:
  int before_ = 0;
  bool restores_ = false;
};

}  // namespace pycomm
