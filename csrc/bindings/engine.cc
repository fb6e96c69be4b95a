#include "engine/engine.h"

#include <pybind11/stl.h>

#include <optional>

#include "bindings/bindings.h"
#include "engine/communicator.h"
#include "engine/thread_world.h"

namespace pycomm::bindings {
namespace py = pybind11;

void bind_engine(py::module_& m) {
  py::class_<ThreadWorld, std::shared_ptr<ThreadWorld>>(m, "ThreadWorld",
                                                        "What ranks that are threads of one process share.")
      .def(py::init<int>(), py::arg("size"))
      .def("handles", &ThreadWorld::handles)
      .def("abort", &ThreadWorld::abort, py::arg("why"));

  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine")
      .def_static(
          "create",
          [](int rank, int size, const std::map<std::string, std::uintptr_t>& handles, bool progress_thread,
             const std::vector<std::string>& transports, std::optional<std::shared_ptr<ThreadWorld>> world,
             std::int64_t trace_events, const std::vector<int>& nodes) {
            Settings settings = Settings::from_environment();
            if (!transports.empty()) settings.transports = transports;
            settings.trace_events = trace_events;
            if (!nodes.empty()) settings.nodes = nodes;
            const py::gil_scoped_release release;
            return Engine::create({rank, size, handles, world.value_or(nullptr)}, settings, progress_thread);
          },
          py::arg("rank"), py::arg("size"), py::arg("handles"), py::arg("progress_thread"),
          py::arg("transports"), py::arg("world") = py::none(), py::arg("trace_events") = 0,
          py::arg("nodes") = std::vector<int>{}, "Collective: connects this rank with the others.")
      .def("close", &Engine::close, py::call_guard<py::gil_scoped_release>(),
           "Stops everything; pending operations fail with Aborted. True when no transport holds a buffer "
           "any more.")
      .def_property_readonly("closed", &Engine::closed)
      .def_property_readonly("warnings", &Engine::warnings)
      .def_property_readonly("has_progress_thread", &Engine::has_progress_thread)
      .def_property_readonly("timeout_s", [](const Engine& engine) { return engine.settings().timeout_s; })
      .def_property_readonly("trace_events",
                             [](const Engine& engine) { return engine.settings().trace_events; })
      .def_property_readonly("trace", &Engine::trace, py::return_value_policy::reference_internal)
      .def(
          "transport_to",
          [](const Engine& engine, int peer) {
            engine.check_usable();
            return engine.router().name_to(peer);
          },
          py::arg("peer"))
      .def_property_readonly("connections", [](const Engine& engine) {
        engine.check_usable();
        return engine.router().connections();
      });
}

}  // namespace pycomm::bindings
