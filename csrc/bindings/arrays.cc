#include "bindings/arrays.h"

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "bindings/devices.h"
#include "core/error.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

struct Released {
  std::atomic<bool> any{false};  // hint; the mutex orders what is behind it
  std::mutex mutex;
  std::vector<Py_buffer> buffers;
};

// Lives as long as the process: threads may still release at exit.
Released& released() {
  static auto* pool = new Released;
  return *pool;
}

std::string type_name(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

// "torch.float32", "torch.int8", ...
DType tensor_dtype(py::handle object, const char* argument) {
  static constexpr std::pair<std::string_view, DType> kNames[] = {
      {"torch.float64", DType::f64},   {"torch.float32", DType::f32}, {"torch.float16", DType::f16},
      {"torch.bfloat16", DType::bf16}, {"torch.int64", DType::i64},   {"torch.int32", DType::i32},
      {"torch.uint8", DType::u8},      {"torch.int8", DType::i8}};
  // torch.dtype objects live for ever: remember the answers by identity. Guarded by the GIL.
  static auto* known = new std::vector<std::pair<PyObject*, DType>>;
  const py::object dtype = object.attr("dtype");
  for (const auto& [type, answer] : *known)
    if (type == dtype.ptr()) return answer;
  const std::string name = py::str(dtype);
  for (const auto& [text, answer] : kNames) {
    if (name != text) continue;
    known->emplace_back(dtype.inc_ref().ptr(), answer);
    return answer;
  }
  throw InvalidArgument(
      text(argument, " has dtype ", name,
           "; expected torch.float64, float32, float16, bfloat16, int64, int32, uint8 or int8"));
}

// A format of the struct module, as the buffer protocol gives it.
DType buffer_dtype(const Py_buffer& buffer, const char* argument) {
  std::string format = buffer.format ? buffer.format : "B";
  if (!format.empty() && (format[0] == '@' || format[0] == '=' || format[0] == '<')) format.erase(0, 1);
  const bool integer = format == "l" || format == "q" || format == "i" || format == "b" || format == "B";
  if (format == "d") return DType::f64;
  if (format == "f") return DType::f32;
  if (format == "e") return DType::f16;
  if (format == "E" && buffer.itemsize == 2) return DType::bf16;  // ml_dtypes.bfloat16
  if (integer && buffer.itemsize == 8) return DType::i64;
  if (integer && buffer.itemsize == 4) return DType::i32;
  if (format == "b") return DType::i8;
  if (format == "B") return DType::u8;
  throw InvalidArgument(text(
      argument, " has element format '", buffer.format ? buffer.format : "",
      "'; expected float64, float32, float16, bfloat16, int64, int32, uint8 or int8 in native byte order"));
}

}  // namespace

Held::~Held() {
  if (PyGILState_Check()) {
    for (std::size_t i = 0; i < count_; ++i) PyBuffer_Release(&first_[i]);
    for (Py_buffer& buffer : more_) PyBuffer_Release(&buffer);
    return;
  }
  Released& pool = released();
  const std::lock_guard lock(pool.mutex);
  pool.buffers.insert(pool.buffers.end(), first_.begin(),
                      first_.begin() + static_cast<std::ptrdiff_t>(count_));
  pool.buffers.insert(pool.buffers.end(), more_.begin(), more_.end());
  pool.any.store(true, std::memory_order_relaxed);
}

void drain_released() {
  Released& pool = released();
  if (!pool.any.load(std::memory_order_relaxed)) return;
  std::vector<Py_buffer> buffers;
  {
    const std::lock_guard lock(pool.mutex);
    pool.any.store(false, std::memory_order_relaxed);
    buffers.swap(pool.buffers);
  }
  for (Py_buffer& buffer : buffers) PyBuffer_Release(&buffer);
}

void Held::hold(const Py_buffer& buffer) {
  if (count_ < first_.size())
    first_[count_++] = buffer;
  else
    more_.push_back(buffer);
}

View Held::take(py::handle object, bool writable, const char* argument) {
  Placement placement;
  const View view = take(object, writable, argument, placement);
  PYCOMM_CHECK(!placement.device, argument, " is on device ", placement.device->name(), "; expected cpu");
  return view;
}

View Held::take(py::handle object, bool writable, const char* argument, Placement& placement) {
  placement = {};
  if (PyObject_CheckBuffer(object.ptr())) return take_buffer(object, writable, argument);
  if (py::hasattr(object, "data_ptr")) return take_tensor(object, argument, placement);
  if (is_cuda_array(object)) {
    keep(object);
    return cuda_array(object, writable, argument, placement);
  }
  throw InvalidArgument(
      text(argument, " is a ", type_name(object),
           "; expected a torch tensor, a NumPy array or another object with the buffer protocol"));
}

View Held::take_tensor(py::handle object, const char* argument, Placement& placement) {
  placement = placement_of(object.attr("device"), argument);
  PYCOMM_CHECK(object.attr("is_contiguous")().cast<bool>(), argument,
               " is not contiguous: pass .contiguous(), or a contiguous part of it");
  View view;
  view.dtype = tensor_dtype(object, argument);
  view.count = object.attr("numel")().cast<std::int64_t>();
  view.data = reinterpret_cast<std::byte*>(object.attr("data_ptr")().cast<std::uintptr_t>());
  keep(object);
  return view;
}

void Held::keep(py::handle object) {
  Py_buffer owner{};
  owner.obj = object.inc_ref().ptr();
  hold(owner);
}

View Held::take_buffer(py::handle object, bool writable, const char* argument) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_STRIDES | PyBUF_FORMAT) != 0)
    throw py::error_already_set();
  hold(buffer);
  PYCOMM_CHECK(PyBuffer_IsContiguous(&buffer, 'C'), argument,
               " is not contiguous in C order: pass numpy.ascontiguousarray(x), or a contiguous part of it");
  PYCOMM_CHECK(!writable || !buffer.readonly, argument, " is read-only, and the result is written to it");
  View view;
  view.dtype = buffer_dtype(buffer, argument);
  view.count = buffer.len / size_of(view.dtype);
  view.data = static_cast<std::byte*>(buffer.buf);
  return view;
}

}  // namespace pycomm::bindings
