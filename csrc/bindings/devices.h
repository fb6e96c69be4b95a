// Where arrays lie that are not in host memory.
#pragma once

#include <pybind11/pybind11.h>

#include "core/device.h"
#include "core/view.h"

namespace pycomm::bindings {

// Whether an object is an array of CUDA's, but no tensor: CuPy's, Numba's.
bool is_cuda_array(pybind11::handle object);
// Its memory, as its __cuda_array_interface__ (version 3) says. Throws InvalidArgument as Held::take does.
View cuda_array(pybind11::handle object, bool writable, const char* argument, Placement& placement);

// Of a tensor on that torch.device: the device, and the stream that is current there now. Throws
// InvalidArgument (naming the argument) where such tensors cannot be taken, and says why.
Placement placement_of(pybind11::handle torch_device, const char* argument);

}  // namespace pycomm::bindings
