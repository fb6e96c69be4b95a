// Answers of the CUDA runtime, as exceptions.
#pragma once

#include <cuda_runtime.h>

#include "core/error.h"

namespace pycomm {

// Throws TransportError: what was tried, and what CUDA says of it.
inline void check_cuda(cudaError_t answer, const char* what) {
  if (answer == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // else the next call would be told of it again
  throw TransportError(
      text("CUDA: ", what, ": ", cudaGetErrorString(answer), " (", cudaGetErrorName(answer), ")"));
}

// Makes a card the current one of this thread, and restores the one before.
class CurrentCard {
 public:
  explicit CurrentCard(int card) {
    check_cuda(cudaGetDevice(&before_), "asking for the current card");
    if (before_ != card) check_cuda(cudaSetDevice(card), "choosing a card");
    changed_ = before_ != card;
  }
  ~CurrentCard() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }
  CurrentCard(const CurrentCard&) = delete;
  CurrentCard& operator=(const CurrentCard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace pycomm
