// Calls that are checked and planned once and made many times, on the same arrays.
#include "bindings/bindings.h"
#include "bindings/calls.h"
#include "bindings/errors.h"
#include "bindings/waiting.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

// Threads: one at a time, with the GIL.
class Persistent {
 public:
  Persistent(std::shared_ptr<Communicator> communicator, py::object result, Call call)
      : communicator_(std::move(communicator)),
        result_(std::move(result)),
        prepared_(communicator_->prepare(std::move(call))) {}

  const py::object& result() const { return result_; }

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
  const py::object result_;
  Prepared prepared_;
  std::shared_ptr<Work> work_;  // of the last start
};

// What the interpreter does for `operation()`: a slot of the type, since looking up a method costs as much as
// sending a short message.
PyObject* call(PyObject* self, PyObject* arguments, PyObject* named) {
  if (PyTuple_GET_SIZE(arguments) > 0 || (named && PyDict_GET_SIZE(named) > 0)) {
    PyErr_SetString(PyExc_TypeError, "a persistent operation is called without arguments");
    return nullptr;
  }
  try {
    auto& persistent = py::cast<Persistent&>(py::handle(self));
    persistent.run();
    return persistent.result().inc_ref().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const Error& error) {
    set_python_error(error);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace

void bind_persistent(py::module_& m) {
  const auto callable = [](PyHeapTypeObject* type) { type->ht_type.tp_call = &call; };
  py::class_<Persistent>(m, "Persistent", py::custom_type_setup(callable))
      .def(py::init([](std::shared_ptr<Communicator> communicator, const py::tuple& request,
                       py::object result) {
             Call call = make_call(*communicator, request);
             return std::make_unique<Persistent>(std::move(communicator), std::move(result), std::move(call));
           }),
           py::arg("communicator"), py::arg("request"), py::arg("result"),
           "Checks and plans a call; moves nothing. Calling the object makes the call and returns `result`.")
      .def(
          "submit", [](Persistent& persistent) { return persistent.start(true); },
          "Starts it and does not block.")
      .def_property_readonly("result", &Persistent::result);
}

}  // namespace pycomm::bindings
