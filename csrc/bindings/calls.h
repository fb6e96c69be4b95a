// Arguments of a collective, from Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/communicator.h"

namespace pycomm::bindings {

using Counts = std::optional<std::vector<std::int64_t>>;
using AlgorithmChoice = std::variant<std::string, std::shared_ptr<OwnAlgorithm>>;

// Throws InvalidArgument for a name that is none.
Collective collective_from_name(std::string_view name);

Order order_from_name(std::string_view name);

// The call that these arguments make on this rank; it holds its arrays. Throws InvalidArgument.
Call make_call(const Communicator& communicator, const std::string& collective, const pybind11::object& x,
               const pybind11::object& out, const std::string& op, int root, double scale,
               const std::string& codec, const AlgorithmChoice& algorithm, double timeout_s, Counts counts,
               Counts received, const std::string& order);

}  // namespace pycomm::bindings
