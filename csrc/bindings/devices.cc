#include "bindings/devices.h"

#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

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

// As NumPy writes them.
DType array_dtype(std::string_view typestr, const char* argument) {
  static constexpr std::pair<std::string_view, DType> kNames[] = {
      {"<f8", DType::f64}, {"<f4", DType::f32}, {"<f2", DType::f16}, {"<i8", DType::i64},
      {"<i4", DType::i32}, {"|u1", DType::u8},  {"|i1", DType::i8}};
  for (const auto& [name, dtype] : kNames)
    if (name == typestr) return dtype;
  throw InvalidArgument(text(argument, " has element type '", typestr,
                             "'; expected float64, float32, float16, int64, int32, uint8 or int8"));
}

// Elements; throws where they do not lie one after the other.
std::int64_t contiguous_count(const py::dict& interface, std::int64_t item_bytes, const char* argument) {
  const auto shape = interface["shape"].cast<std::vector<std::int64_t>>();
  std::int64_t count = 1;
  for (const std::int64_t length : shape) count *= length;
  if (count == 0 || !interface.contains("strides") || interface["strides"].is_none()) return count;
  const auto strides = interface["strides"].cast<std::vector<std::int64_t>>();
  std::int64_t expected = item_bytes;
  for (std::size_t dim = shape.size(); dim-- > 0; expected *= shape[dim])
    PYCOMM_CHECK(shape[dim] == 1 || strides.at(dim) == expected, argument,
                 " is not contiguous in C order: pass cupy.ascontiguousarray(x), or a contiguous part of it");
  return count;
}

}  // namespace

bool is_cuda_array(py::handle object) {
  return py::hasattr(object, "__cuda_array_interface__") && !py::hasattr(object, "data_ptr");
}

View cuda_array(py::handle object, bool writable, const char* argument, Placement& placement) {
  const py::dict interface = object.attr("__cuda_array_interface__");
  View view;
  view.dtype = array_dtype(interface["typestr"].cast<std::string>(), argument);
  view.count = contiguous_count(interface, size_of(view.dtype), argument);
  const auto [address, read_only] = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
  PYCOMM_CHECK(!writable || !read_only, argument, " is read-only, and the result is written to it");
  view.data = reinterpret_cast<std::byte*>(address);
  Device& device = cuda(argument);
  placement = {&device, view.count > 0 ? device.card_of(view.data) : 0, 0};
  // None: nothing that the array waits for. 1 and 2 are CUDA's names for the default streams.
  if (interface.contains("stream") && !interface["stream"].is_none())
    placement.stream = interface["stream"].cast<std::uintptr_t>();
  return view;
}

Placement placement_of(py::handle torch_device, const char* argument) {
  const std::string type = py::str(torch_device.attr("type"));
  if (type == "cpu") return {};
  PYCOMM_CHECK(type == "cuda", argument, " is on device ", type, "; expected cpu or cuda");
  Device& device = cuda(argument);
  const py::object stream = py::module_::import("torch").attr("cuda").attr("current_stream")(torch_device);
  return {&device, torch_device.attr("index").cast<int>(), stream.attr("cuda_stream").cast<std::uintptr_t>()};
}

}  // namespace pycomm::bindings
