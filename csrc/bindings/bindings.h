// One function per file of bindings, called by module.cc.
#pragma once

#include <pybind11/pybind11.h>

namespace pycomm::bindings {

void bind_errors(pybind11::module_& m);
void bind_work(pybind11::module_& m);
void bind_trace(pybind11::module_& m);
void bind_engine(pybind11::module_& m);
void bind_communicator(pybind11::module_& m);
void bind_persistent(pybind11::module_& m);
void bind_plans(pybind11::module_& m);
void bind_bucketer(pybind11::module_& m);
void bind_mailbox(pybind11::module_& m);
void bind_memory(pybind11::module_& m);
void bind_info(pybind11::module_& m);
void bind_selection(pybind11::module_& m);

}  // namespace pycomm::bindings
