// Where arrays lie that are not in host memory.
#pragma once

#include <pybind11/pybind11.h>

#include "core/device.h"

namespace pycomm::bindings {

// Of a tensor on that torch.device: the device, and the stream that is current there now. Throws
// InvalidArgument (naming the argument) where such tensors cannot be taken, and says why.
Placement placement_of(pybind11::handle torch_device, const char* argument);

}  // namespace pycomm::bindings
