// Calls that are checked and planned once and made many times, on the same arrays.
#include "bindings/bindings.h"
#include "bindings/calls.h"
#include "bindings/waiting.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

// Threads: one at a time, with the GIL.
class Persistent {
 public:
  Persistent(std::shared_ptr<Communicator> communicator, Call call)
      : communicator_(std::move(communicator)), prepared_(communicator_->prepare(std::move(call))) {}

  std::shared_ptr<Work> start(bool soon) {
    PYCOMM_CHECK(!work_ || work_->done(), name_of(prepared_.call.collective),
                 ": this operation is under way: wait() for it before it starts again");
    prepared_.call.soon = soon;
    work_ = communicator_->start(prepared_);
    return work_;
  }

  void run() {
    const auto work = start(false);
    wait_for(*communicator_, *work, kForeverSeconds);
    raise_failure(*work);
  }

 private:
  const std::shared_ptr<Communicator> communicator_;
  Prepared prepared_;
  std::shared_ptr<Work> work_;  // of the last start
};

}  // namespace

void bind_persistent(py::module_& m) {
  py::class_<Persistent>(m, "Persistent")
      .def(py::init([](std::shared_ptr<Communicator> communicator, const std::string& collective,
                       const py::object& x, const py::object& out, const std::string& op, int root,
                       double scale, const std::string& codec, const AlgorithmChoice& algorithm,
                       double timeout_s, Counts counts, Counts received) {
             Call call = make_call(*communicator, collective, x, out, op, root, scale, codec, algorithm,
                                   timeout_s, std::move(counts), std::move(received));
             return std::make_unique<Persistent>(std::move(communicator), std::move(call));
           }),
           py::arg("communicator"), py::arg("collective"), py::arg("x"), py::arg("out"), py::arg("op"),
           py::arg("root"), py::arg("scale"), py::arg("codec"), py::arg("algorithm"), py::arg("timeout_s"),
           py::arg("counts"), py::arg("received"), "Checks and plans a call; moves nothing.")
      .def(
          "start", [](Persistent& persistent) { return persistent.start(true); },
          "Starts it and does not block.")
      .def("run", &Persistent::run, "Blocks until it is done.");
}

}  // namespace pycomm::bindings
