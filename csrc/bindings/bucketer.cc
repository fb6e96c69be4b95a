#include "engine/bucketer.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/calls.h"
#include "bindings/waiting.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

std::shared_ptr<Bucketer> make(std::shared_ptr<Communicator> communicator,
                               const std::vector<py::object>& buffers, const std::vector<std::string>& dtypes,
                               const std::vector<std::tuple<int, std::int64_t, std::int64_t>>& slots,
                               const std::string& op, const std::string& codec, const std::string& algorithm,
                               const std::string& order, bool launch_when_full, bool soon) {
  PYCOMM_CHECK(buffers.size() == dtypes.size(), "expected a dtype for each of ", buffers.size(),
               " buffers, got ", dtypes.size());
  auto held = std::make_shared<Held>();
  std::vector<View> views;
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    const View bytes = held->take(buffers[i], true, "buffer");
    const DType dtype = dtype_from_name(dtypes[i]);
    views.push_back({bytes.data, bytes.bytes() / size_of(dtype), dtype});
  }
  std::vector<Bucketer::Slot> places;
  for (const auto& [bucket, offset, count] : slots) places.push_back({bucket, offset, count});
  Bucketer::Options options{reduce_op_from_name(op), codec, algorithm, order_from_name(order),
                            launch_when_full,        soon};
  return std::make_shared<Bucketer>(std::move(communicator), std::move(views), std::move(places),
                                    std::move(options), std::move(held));
}

}  // namespace

void bind_bucketer(py::module_& m) {
  py::class_<Bucketer, std::shared_ptr<Bucketer>>(m, "Bucketer")
      .def(py::init(&make), py::arg("communicator"), py::arg("buffers"), py::arg("dtypes"), py::arg("slots"),
           py::arg("op"), py::arg("codec"), py::arg("algorithm"), py::arg("order"),
           py::arg("launch_when_full"), py::arg("soon"))
      .def(
          "put",
          [](Bucketer& bucketer, int slot, const py::object& gradient, double scale) {
            Held held;
            return bucketer.put(slot, held.take(gradient, false, "gradient"), scale);
          },
          py::arg("slot"), py::arg("gradient"), py::arg("scale"))
      .def("mark", &Bucketer::mark, py::arg("slot"), py::arg("scale"))
      .def("launch", &Bucketer::launch, py::arg("bucket"), py::arg("scale"))
      .def("flush", &Bucketer::flush, py::arg("scale"))
      .def("finish_round", &Bucketer::finish_round)
      .def("reset", &Bucketer::reset)
      .def("filled", &Bucketer::filled, py::arg("slot"))
      .def_property_readonly("launched", &Bucketer::launched)
      .def_property_readonly("works", &Bucketer::works)
      .def_property_readonly("used", &Bucketer::used);
}

}  // namespace pycomm::bindings
