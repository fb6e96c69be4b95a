#include "engine/work.h"

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/errors.h"
#include "bindings/threads.h"
#include "bindings/waiting.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

// On the clock of time.monotonic().
double seconds(Clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

}  // namespace

bool wait_for(Communicator& communicator, Work& work, double timeout_s) {
  Trace& trace = communicator.engine().trace();
  name_this_thread(trace);
  const bool traced = !work.call().collective.empty();  // messages of mailboxes are not
  const TraceSpan span(trace, "wait", traced ? &work.call() : nullptr);
  const bool bounded = timeout_s < kForeverSeconds;
  const auto start = bounded ? Clock::now() : Clock::time_point{};
  while (!work.done()) {
    const double left = bounded ? timeout_s - pycomm::seconds(Clock::now() - start) : kForeverSeconds;
    if (left <= 0) return false;
    {
      const py::gil_scoped_release release;
      communicator.wait(work, std::min(left, 0.1));
    }
    if (!work.done() && PyErr_CheckSignals() != 0) {
      py::error_already_set interruption;
      work.abandon("interrupted");
      {
        const py::gil_scoped_release release;
        communicator.wait(work, 1.0);
      }
      throw interruption;
    }
  }
  drain_released();
  return true;
}

void raise_failure(const Work& work) {
  if (const Failure* failure = work.failure()) raise(failure->kind, failure->what);
}

void bind_work(py::module_& m) {
  py::class_<Work, std::shared_ptr<Work>>(m, "Work")
      .def("done", &Work::done)
      .def("error",
           [](const Work& work) -> py::object {
             const Failure* failure = work.failure();
             return failure ? python_error(failure->kind, failure->what) : py::none();
           })
      .def("abandon", &Work::abandon, py::arg("why"))
      .def_property_readonly("bytes_sent",
                             [](const Work& work) { return work.done() ? work.bytes_sent() : 0; })
      .def_property_readonly("submitted_s", [](const Work& work) { return seconds(work.submitted()); })
      .def_property_readonly("started_s",
                             [](const Work& work) { return work.done() ? seconds(work.started()) : 0.0; })
      .def_property_readonly("finished_s",
                             [](const Work& work) { return work.done() ? seconds(work.finished()) : 0.0; });
}

}  // namespace pycomm::bindings
