#include "engine/communicator.h"

#include <pybind11/stl.h>

#include <optional>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/errors.h"
#include "bindings/threads.h"
#include "bindings/waiting.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

Collective collective_from_name(std::string_view name) {
  for (int i = 0; i < kCollectiveCount; ++i)
    if (kCollectiveNames[i] == name) return static_cast<Collective>(i);
  throw InvalidArgument(text("unknown collective '", name, "'"));
}

// Whether the call writes to x where no `out` is given.
bool writes_input(const Call& call, int rank) {
  return call.collective == Collective::all_reduce || call.collective == Collective::broadcast ||
         call.collective == Collective::recv || (call.collective == Collective::reduce && rank == call.root);
}

// Takes what the rank gives and gets. A root collective has ranks that give or get nothing: they pass None,
// and the empty side has the dtype of the other.
void take_arrays(Call& call, Held& held, const py::object& x, const py::object& out, int rank) {
  if (call.collective == Collective::barrier) return;
  const bool may_give_nothing = call.collective == Collective::scatter && rank != call.root;
  const bool may_get_nothing =
      rank != call.root && (call.collective == Collective::reduce || call.collective == Collective::gather);
  PYCOMM_CHECK(!x.is_none() || may_give_nothing, name_of(call.collective), ": x is None; expected an array");
  PYCOMM_CHECK(!x.is_none() || !out.is_none(), name_of(call.collective), ": x and out are None; rank ", rank,
               " expected an array to receive into");
  if (!x.is_none()) call.input = held.take(x, out.is_none() && writes_input(call, rank), "x");
  if (!out.is_none()) {
    call.output = held.take(out, true, "out");
  } else if (may_get_nothing) {
    call.output = {nullptr, 0, call.input.dtype};
  } else {
    call.output = call.input;
  }
  if (x.is_none()) call.input = {nullptr, 0, call.output.dtype};
}

using Counts = std::vector<std::int64_t>;

// The arguments of `start` and `run`, in order.
std::shared_ptr<Work> start(Communicator& communicator, const std::string& collective, const py::object& x,
                            const py::object& out, const std::string& op, int root, double scale,
                            const std::string& codec, const std::string& algorithm, double timeout_s,
                            std::optional<Counts> counts, std::optional<Counts> received, bool soon) {
  drain_released();
  name_this_thread(communicator.engine().trace());
  Call call;
  call.collective = collective_from_name(collective);
  call.op = reduce_op_from_name(op);
  call.root = root;
  call.scale = scale;
  call.codec = codec;
  call.algorithm = algorithm;
  call.timeout_s = timeout_s;
  call.soon = soon;
  if (counts) call.counts = std::move(*counts);
  if (received) call.received = std::move(*received);
  PYCOMM_CHECK(timeout_s >= 0, "timeout is ", timeout_s, "; expected a number of seconds above 0");
  auto held = std::make_shared<Held>();
  take_arrays(call, *held, x, out, communicator.rank());
  call.keepalive = std::move(held);
  return communicator.submit(std::move(call));
}

}  // namespace

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
      .def_property_readonly("segment_bytes", &Communicator::segment_bytes)
      .def("error",
           [](const Communicator& c) -> py::object {
             const auto failure = c.failure();
             return failure ? python_error(failure->kind, failure->what) : py::none();
           })
      .def("start", &start, py::arg("collective"), py::arg("x"), py::arg("out"), py::arg("op"),
           py::arg("root"), py::arg("scale"), py::arg("codec"), py::arg("algorithm"), py::arg("timeout_s"),
           py::arg("counts"), py::arg("received"), py::arg("soon"), "Starts an operation and does not block.")
      .def(
          "run",
          [](Communicator& communicator, const std::string& collective, const py::object& x,
             const py::object& out, const std::string& op, int root, double scale, const std::string& codec,
             const std::string& algorithm, double timeout_s, std::optional<Counts> counts,
             std::optional<Counts> received) {
            const auto work = start(communicator, collective, x, out, op, root, scale, codec, algorithm,
                                    timeout_s, std::move(counts), std::move(received), false);
            wait_for(communicator, *work, 1e9);  // the operation's own deadline ends it
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
