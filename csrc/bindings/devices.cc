#include "bindings/devices.h"

#include <string>

#include "bindings/device_capsule.h"
#include "core/error.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

// The module _cuda is there where the build had a CUDA compiler; pycomm.cuda knows, and says why not.
Device& cuda(const char* argument) {
  static Device* known = nullptr;  // guarded by the GIL
  if (known) return *known;
  const py::module_ python = py::module_::import("pycomm.cuda");
  const std::string why = py::str(python.attr("why_not")());
  PYCOMM_CHECK(why.empty(), argument, " is on device cuda; expected cpu, since ", why);
  const py::capsule capsule = py::module_::import("pycomm._cuda").attr("device")();
  const std::string name = capsule.name() ? capsule.name() : "";
  PYCOMM_CHECK(name == kDeviceCapsule, "pycomm._cuda is of another build (", name, ") than pycomm._core (",
               kDeviceCapsule, "): build both anew");
  return *(known = capsule.get_pointer<Device>());
}

}  // namespace

Placement placement_of(py::handle torch_device, const char* argument) {
  const std::string type = py::str(torch_device.attr("type"));
  if (type == "cpu") return {};
  PYCOMM_CHECK(type == "cuda", argument, " is on device ", type, "; expected cpu or cuda");
  Device& device = cuda(argument);
  const py::object stream = py::module_::import("torch").attr("cuda").attr("current_stream")(torch_device);
  return {&device, torch_device.attr("index").cast<int>(), stream.attr("cuda_stream").cast<std::uintptr_t>()};
}

}  // namespace pycomm::bindings
