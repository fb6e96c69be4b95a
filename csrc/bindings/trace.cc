#include "core/trace.h"

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/threads.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

Trace::Time time_of(std::int64_t ns) {
  return Trace::Time(std::chrono::duration_cast<Trace::Clock::duration>(std::chrono::nanoseconds(ns)));
}

}  // namespace

void name_this_thread(Trace& trace) {
  if (!trace.on() || !trace.meets_thread()) return;
  const py::module_ threading = py::module_::import("threading");
  const py::object thread = threading.attr("current_thread")();
  const bool main = thread.is(threading.attr("main_thread")());
  trace.name_thread(main ? "main" : thread.attr("name").cast<std::string>());
}

void bind_trace(py::module_& m) {
  py::class_<Trace>(m, "Trace", "What one rank records. Times are those of time.monotonic_ns().")
      .def("start", &Trace::start, py::arg("capacity"), "Begins recording; once.")
      .def("stop", &Trace::stop)
      .def(
          "span",
          [](Trace& trace, const std::string& name, std::int64_t begin_ns, std::int64_t end_ns,
             std::string arguments) {
            if (!trace.on()) return;
            name_this_thread(trace);
            trace.span(name, time_of(begin_ns), time_of(end_ns), std::move(arguments));
          },
          py::arg("name"), py::arg("begin_ns"), py::arg("end_ns"), py::arg("arguments"),
          "Records a span of the calling thread; `arguments` is the inside of a JSON object.")
      .def_property_readonly("recorded", &Trace::recorded)
      .def_property_readonly("dropped", &Trace::dropped)
      .def_property_readonly("threads", &Trace::threads,
                             "Names by the system's number of the thread; empty where it has none.")
      .def(
          "render",
          [](const Trace& trace, std::int64_t first, std::int64_t last, int process, std::int64_t zero_ns,
             double rate) {
            std::string events;
            {
              const py::gil_scoped_release release;
              events = trace.render(first, last, process, {zero_ns, rate});
            }
            return py::bytes(events);
          },
          py::arg("first"), py::arg("last"), py::arg("process"), py::arg("zero_ns"), py::arg("rate"),
          "Events as JSON objects, each after a comma, on a clock that is 0 at zero_ns and runs at that "
          "rate.");
}

}  // namespace pycomm::bindings
