#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "core/error.h"

namespace pycomm::bindings {

// An instance of the class in pycomm/errors.py that belongs to `kind`.
pybind11::object python_error(ErrorKind kind, const std::string& what);
// Raises it, for slots of types, where pybind11 translates nothing.
void set_python_error(const Error& error);

}  // namespace pycomm::bindings
