// Python objects as views of memory, and what keeps them alive.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <memory>
#include <vector>

#include "core/device.h"
#include "core/view.h"

namespace pycomm::bindings {

// Buffers that an operation uses. The last owner may be a thread without the GIL: what was held is then
// released at the next call of drain_released().
class Held {
 public:
  Held() = default;
  ~Held();
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  // The memory of a torch tensor or of anything with the buffer protocol. Throws InvalidArgument (naming the
  // argument) when it is not contiguous, not in host memory, of an unknown dtype, or read-only though it must
  // be written.
  View take(pybind11::handle object, bool writable, const char* argument);
  // The same, or of a torch tensor or another array on a device.
  View take(pybind11::handle object, bool writable, const char* argument, Placement& placement);

 private:
  View take_tensor(pybind11::handle object, const char* argument, Placement& placement);
  View take_buffer(pybind11::handle object, bool writable, const char* argument);
  void hold(const Py_buffer& buffer);
  void keep(pybind11::handle object);

  // An object without the buffer protocol is a Py_buffer that only names it. Most calls have two at most.
  std::array<Py_buffer, 2> first_;
  std::size_t count_ = 0;  // in first_
  std::vector<Py_buffer> more_;
};

// With the GIL: lets go of what other threads could not.
void drain_released();

}  // namespace pycomm::bindings
