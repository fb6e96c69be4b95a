// How one extension module hands a Device to another: both must be made with the same core/device.h, whose
// digest CMake names PYCOMM_DEVICE_INTERFACE.
#pragma once

namespace pycomm::bindings {

inline constexpr const char* kDeviceCapsule = "pycomm.Device " PYCOMM_DEVICE_INTERFACE;

}  // namespace pycomm::bindings
