// The module _cuda: what there is of CUDA here, and its cards as a Device for the module _core.
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <string>

#include "bindings/device_capsule.h"
#include "device/cuda_device.h"

namespace py = pybind11;

namespace {

using Facts = py::typing::Dict<py::str, py::object>;

// "13.0" for 13000.
std::string version_text(int version) {
  if (version == 0) return "";
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

Facts facts() {
  const pycomm::CudaFacts known = pycomm::cuda_facts();
  py::list cards;
  for (const pycomm::CudaCard& card : known.cards) {
    py::dict row;
    row["name"] = card.name;
    row["memory_bytes"] = card.memory_bytes;
    row["capability"] = std::to_string(card.major) + "." + std::to_string(card.minor);
    cards.append(row);
  }
  Facts out;
  out["runtime"] = version_text(known.runtime_version);
  out["driver"] = version_text(known.driver_version);
  out["cards"] = cards;
  out["why"] = known.why;
  return out;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA for the collectives engine. Use it through the package pycomm.";
  m.def("facts", &facts, "Versions and cards, and why none can be used. Starts no context on any card.");
  m.def(
      "device",
      [] {
        return py::capsule(static_cast<void*>(&pycomm::cuda_device()), pycomm::bindings::kDeviceCapsule);
      },
      "For the module _core.");
}
