// Plans as text, and algorithms that Python wrote.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/calls.h"
#include "engine/own_algorithm.h"
#include "plan/text.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

std::shared_ptr<OwnAlgorithm> own_algorithm(const std::string& collective, int root, const std::string& name,
                                            const std::vector<std::string>& texts, int rank,
                                            const std::vector<int>& nodes) {
  const py::gil_scoped_release release;
  std::vector<Plan> plans;
  for (const std::string& source : texts) plans.push_back(plan_from_text(source));
  return std::make_shared<OwnAlgorithm>(collective_from_name(collective), root, name, plans, rank,
                                        numbered(nodes));
}

std::string plan_text(const std::string& collective, const std::string& algorithm, int rank, int size,
                      int root, const std::vector<int>& nodes) {
  const Collective which = collective_from_name(collective);
  const Algorithm& chosen = algorithm_named(which, algorithm);
  PYCOMM_CHECK(size >= 1 && rank >= 0 && rank < size && root >= 0 && root < size, "rank ", rank, " and root ",
               root, " of ", size, " ranks");
  PYCOMM_CHECK(!chosen.supports || chosen.supports(size), chosen.name, " does not support ", size, " ranks");
  PYCOMM_CHECK(nodes.empty() || std::ssize(nodes) == size, "nodes of ", nodes.size(), " ranks of ", size);
  return to_text(chosen.plan({which, rank, size, root, numbered(nodes)}));
}

}  // namespace

void bind_plans(py::module_& m) {
  py::class_<OwnAlgorithm, std::shared_ptr<OwnAlgorithm>>(m, "OwnAlgorithm")
      .def(py::init(&own_algorithm), py::arg("collective"), py::arg("root"), py::arg("name"),
           py::arg("plans"), py::arg("rank"), py::arg("nodes"),
           "Proves the plans of all ranks right, and readies this rank's. `nodes`: a number for each rank, "
           "equal on ranks of one node. Raises InvalidArgument.")
      .def_property_readonly("digest", &OwnAlgorithm::digest);
  m.def("plan_text", &plan_text, py::arg("collective"), py::arg("algorithm"), py::arg("rank"),
        py::arg("size"), py::arg("root"), py::arg("nodes") = std::vector<int>{},
        "The plan of a registered algorithm. `nodes`: a number for each rank, equal on ranks of one node.");
}

}  // namespace pycomm::bindings
