// Each C++ exception becomes the Python class of the same name (pycomm/errors.py).
#include "core/error.h"

#include "bindings/bindings.h"
#include "bindings/errors.h"

namespace pycomm::bindings {
namespace py = pybind11;

const char* python_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid_argument:
      return "InvalidArgument";
    case ErrorKind::transport:
      return "TransportError";
    case ErrorKind::timeout:
      return "Timeout";
    case ErrorKind::aborted:
      return "Aborted";
    case ErrorKind::mismatch:
      return "MismatchError";
    case ErrorKind::internal:
      break;
  }
  return "PycommError";
}

py::object python_error(ErrorKind kind, const std::string& what) {
  return py::module_::import("pycomm.errors").attr(python_name(kind))(what);
}

void set_python_error(const Error& error) {
  const py::object exception = python_error(error.kind(), error.what());
  PyErr_SetObject(py::type::handle_of(exception).ptr(), exception.ptr());
}

void bind_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      set_python_error(error);
    }
  });
}

}  // namespace pycomm::bindings
