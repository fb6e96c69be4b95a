#include "engine/communicator.h"

#include "bindings/bindings.h"
#include "bindings/calls.h"
#include "bindings/errors.h"
#include "bindings/threads.h"
#include "bindings/waiting.h"

namespace pycomm::bindings {
namespace py = pybind11;
void bind_communicator(py::module_& m) {
  py::class_<Communicator, std::shared_ptr<Communicator>>(m, "Communicator")
      .def(py::init([](const std::shared_ptr<Engine>& engine) {
             std::vector<int> ranks(engine->size());
             for (int i = 0; i < engine->size(); ++i) ranks[i] = i;
             auto group = std::make_shared<Group>(0, engine->rank(), std::move(ranks));
             return std::make_shared<Communicator>(engine, std::move(group), engine->segment_bytes());
           }),
           py::arg("engine"), "The communicator of all ranks of an engine.")
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def_property_readonly("context", [](const Communicator& c) { return c.group().context; })
      .def_property_readonly("world_ranks", [](const Communicator& c) { return c.group().world_ranks; })
      .def_property_readonly("nodes", &Communicator::nodes)
      .def_property_readonly("segment_bytes", &Communicator::segment_bytes)
      .def("error",
           [](const Communicator& c) -> py::object {
             const auto failure = c.failure();
             return failure ? python_error(failure->kind, failure->what) : py::none();
           })
      .def(
          "start",
          [](Communicator& communicator, const std::string& collective, const py::object& x,
             const py::object& out, const std::string& op, int root, double scale, const std::string& codec,
             const AlgorithmChoice& algorithm, double timeout_s, Counts counts, Counts received) {
            return communicator.submit(make_call(communicator, collective, x, out, op, root, scale, codec,
                                                 algorithm, timeout_s, std::move(counts),
                                                 std::move(received)));
          },
          py::arg("collective"), py::arg("x"), py::arg("out"), py::arg("op"), py::arg("root"),
          py::arg("scale"), py::arg("codec"), py::arg("algorithm"), py::arg("timeout_s"), py::arg("counts"),
          py::arg("received"), "Starts an operation and does not block.")
      .def(
          "run",
          [](Communicator& communicator, const std::string& collective, const py::object& x,
             const py::object& out, const std::string& op, int root, double scale, const std::string& codec,
             const AlgorithmChoice& algorithm, double timeout_s, Counts counts, Counts received) {
            Call call = make_call(communicator, collective, x, out, op, root, scale, codec, algorithm,
                                  timeout_s, std::move(counts), std::move(received));
            call.soon = false;
            const auto work = communicator.submit(std::move(call));
            wait_for(communicator, *work, kForeverSeconds);
            raise_failure(*work);
          },
          py::arg("collective"), py::arg("x"), py::arg("out"), py::arg("op"), py::arg("root"),
          py::arg("scale"), py::arg("codec"), py::arg("algorithm"), py::arg("timeout_s"), py::arg("counts"),
          py::arg("received"), "Blocks until the operation is done.")
      .def(
          "wait",
          [](Communicator& communicator, const std::shared_ptr<Work>& work, double timeout_s) {
            if (!wait_for(communicator, *work, timeout_s)) return false;
            raise_failure(*work);
            return true;
          },
          py::arg("work"), py::arg("timeout_s"),
          "False when the time is over first; raises what made the work fail.")
      .def("abort", &Communicator::abort, py::arg("why"), py::call_guard<py::gil_scoped_release>())
      .def("subgroup", &Communicator::subgroup, py::arg("context"), py::arg("rank"), py::arg("world_ranks"),
           py::arg("segment_bytes"))
      .def("preferred_segment_bytes", &Communicator::preferred_segment_bytes, py::arg("world_ranks"));
}

}  // namespace pycomm::bindings
