#include "bindings/calls.h"

#include "bindings/arrays.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

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

}  // namespace

Collective collective_from_name(std::string_view name) {
  for (int i = 0; i < kCollectiveCount; ++i)
    if (kCollectiveNames[i] == name) return static_cast<Collective>(i);
  throw InvalidArgument(text("unknown collective '", name, "'"));
}

Order order_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kOrderNames.size(); ++i)
    if (kOrderNames[i] == name) return static_cast<Order>(i);
  throw InvalidArgument(text("order is '", name, "'; expected any, rank or tree"));
}

Call make_call(const Communicator& communicator, const std::string& collective, const py::object& x,
               const py::object& out, const std::string& op, int root, double scale, const std::string& codec,
               const AlgorithmChoice& algorithm, double timeout_s, Counts counts, Counts received,
               const std::string& order) {
  drain_released();
  Call call;
  call.collective = collective_from_name(collective);
  call.op = reduce_op_from_name(op);
  call.root = root;
  call.order = order_from_name(order);
  call.scale = scale;
  call.codec = codec;
  if (const auto* name = std::get_if<std::string>(&algorithm))
    call.algorithm = *name;
  else
    call.own_algorithm = std::get<1>(algorithm);
  call.timeout_s = timeout_s;
  if (counts) call.counts = std::move(*counts);
  if (received) call.received = std::move(*received);
  PYCOMM_CHECK(timeout_s >= 0, "timeout is ", timeout_s, "; expected a number of seconds above 0");
  auto held = std::make_shared<Held>();
  take_arrays(call, *held, x, out, communicator.rank());
  call.keepalive = std::move(held);
  return call;
}

}  // namespace pycomm::bindings
