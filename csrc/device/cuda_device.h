// CUDA's cards as a Device, and what there is of them. Compiled into the module _cuda alone, which works with
// its own copy of the CUDA runtime and needs neither card nor driver to be loaded.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/device.h"

namespace pycomm {

struct CudaCard {
  std::string name;
  std::size_t memory_bytes = 0;
  int major = 0;  // of its compute capability
  int minor = 0;
};

struct CudaFacts {
  int runtime_version = 0;  // 13000 is 13.0
  int driver_version = 0;   // the newest that the driver serves; 0: there is none
  std::vector<CudaCard> cards;
  std::string why;  // no card can be used; empty: one can
};
CudaFacts cuda_facts();

// Lives as long as the process.
Device& cuda_device();

}  // namespace pycomm
