// How one extension module hands a Device to another: both must be of one build.
#pragma once

namespace pycomm::bindings {

inline constexpr const char* kDeviceCapsule = "pycomm.Device " PYCOMM_VERSION;

}  // namespace pycomm::bindings
