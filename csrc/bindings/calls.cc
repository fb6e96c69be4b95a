#include "bindings/calls.h"

#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <vector>

#include "bindings/arrays.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

using Counts = std::optional<std::vector<std::int64_t>>;

// Of a request, in order.
enum Field {
  kCollective,
  kX,
  kOut,
  kOp,
  kRoot,
  kScale,
  kCodec,
  kAlgorithm,
  kTimeout,
  kCounts,
  kReceived,
  kOrder
};
constexpr std::array<const char*, 12> kFieldNames = {"collective", "x",      "out",      "op",
                                                     "root",       "scale",  "codec",    "algorithm",
                                                     "timeout",    "counts", "received", "order"};

template <class T>
T field(const py::tuple& request, Field index) {
  const py::handle value = PyTuple_GET_ITEM(request.ptr(), index);
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw py::type_error(text(kFieldNames[index], " is ", py::str(py::repr(value)).cast<std::string>(),
                              ": an object of another type was expected"));
  }
}

// Whether the call writes to x where no `out` is given.
bool writes_input(const Call& call, int rank) {
  return call.collective == Collective::all_reduce || call.collective == Collective::broadcast ||
         call.collective == Collective::recv || (call.collective == Collective::reduce && rank == call.root);
}

std::string place_name(const Placement& placement) {
  if (!placement.device) return "in host memory";
  return text("on ", placement.device->name(), ":", placement.card);
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
  const auto take = [&](const py::object& array, bool writable, const char* argument) {
    return held.take(array, writable, argument, call.placement);
  };
  if (!x.is_none()) call.input = take(x, out.is_none() && writes_input(call, rank), "x");
  if (!out.is_none()) {
    const Placement of_input = call.placement;
    call.output = take(out, true, "out");
    const Placement& of_output = call.placement;
    PYCOMM_CHECK(x.is_none() || (of_input.device == of_output.device && of_input.card == of_output.card),
                 "x is ", place_name(of_input), " and out is ", place_name(of_output),
                 "; expected both in one place");
    PYCOMM_CHECK(x.is_none() || of_input.stream == of_output.stream, "x waits for stream ", of_input.stream,
                 " and out for ", of_output.stream, "; expected one stream");
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

Call make_call(const Communicator& communicator, const py::tuple& request) {
  drain_released();
  PYCOMM_CHECK(request.size() == kFieldNames.size(), "a request has ", request.size(), " fields; expected ",
               kFieldNames.size());
  Call call;
  call.collective = collective_from_name(field<std::string_view>(request, kCollective));
  call.op = reduce_op_from_name(field<std::string_view>(request, kOp));
  call.root = field<int>(request, kRoot);
  call.order = order_from_name(field<std::string_view>(request, kOrder));
  call.scale = field<double>(request, kScale);
  call.codec = field<std::string_view>(request, kCodec);
  const py::handle algorithm = PyTuple_GET_ITEM(request.ptr(), kAlgorithm);
  if (PyUnicode_Check(algorithm.ptr()))
    call.algorithm = field<std::string_view>(request, kAlgorithm);
  else
    call.own_algorithm = field<std::shared_ptr<OwnAlgorithm>>(request, kAlgorithm);
  call.timeout_s = field<double>(request, kTimeout);
  call.counts = field<Counts>(request, kCounts).value_or(std::vector<std::int64_t>{});
  call.received = field<Counts>(request, kReceived).value_or(std::vector<std::int64_t>{});
  PYCOMM_CHECK(call.timeout_s >= 0, "timeout is ", call.timeout_s, "; expected a number of seconds above 0");
  auto held = std::make_shared<Held>();
  const auto object = [&](Field index) {
    return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(request.ptr(), index));
  };
  take_arrays(call, *held, object(kX), object(kOut), communicator.rank());
  call.keepalive = std::move(held);
  return call;
}

}  // namespace pycomm::bindings
