// Arguments of a collective, from Python.
#pragma once

#include <pybind11/pybind11.h>

#include <string_view>

#include "engine/communicator.h"

namespace pycomm::bindings {

// Throws InvalidArgument for a name that is none.
Collective collective_from_name(std::string_view name);

Order order_from_name(std::string_view name);

// The call that a pycomm.request.Request makes on this rank; it holds its arrays. One tuple, for unpacking it
// here takes less time than matching a dozen arguments. Throws InvalidArgument, and TypeError for fields of
// other types.
Call make_call(const Communicator& communicator, const pybind11::tuple& request);

}  // namespace pycomm::bindings
