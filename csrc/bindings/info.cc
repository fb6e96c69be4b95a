// What this build and this machine can do.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "bindings/bindings.h"
#include "codec/codec.h"
#include "kernels/kernels.h"
#include "plan/plan.h"
#include "transport/mpi_info.h"
#include "transport/transport.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

using Facts = py::typing::Dict<py::str, py::object>;

Facts mpi() {
  const MpiInfo info = mpi_info();
  Facts out;
  out["version"] = info.version;
  out["path"] = info.path;
  out["initialized"] = info.initialized;
  out["finalized"] = info.finalized;
  out["thread_level"] = info.thread_level;
  out["ulfm"] = info.ulfm;
  return out;
}

py::typing::Dict<py::str, Facts> transports() {
  py::typing::Dict<py::str, Facts> out;
  for (const TransportEntry* entry : Registry<TransportEntry>::instance().all()) {
    Facts row;
    row["summary"] = entry->summary;
    row["between"] = entry->between == Between::threads ? "threads" : "processes";
    row["mapped"] = entry->mapped;
    out[py::str(entry->name)] = row;
  }
  return out;
}

py::typing::Dict<py::str, Facts> codecs() {
  py::typing::Dict<py::str, Facts> out;
  for (const Codec* codec : Registry<Codec>::instance().all()) {
    Facts row;
    row["summary"] = codec->summary;
    row["lossless"] = codec->lossless;
    row["unit"] = codec->precision.unit;
    row["smallest"] = codec->precision.smallest;
    row["largest"] = codec->precision.largest;
    out[py::str(codec->name)] = row;
  }
  return out;
}

py::typing::Dict<py::str, Facts> algorithms() {
  py::typing::Dict<py::str, Facts> out;
  for (const Algorithm* algorithm : Registry<Algorithm>::instance().all()) {
    Facts row;
    row["summary"] = algorithm->summary;
    row["lossy_codecs"] = algorithm->lossy_codecs;
    row["mapped"] = algorithm->mapped;
    row["uneven"] = algorithm->uneven;
    row["follows_nodes"] = algorithm->volume_of_node != nullptr;
    out[py::str(algorithm->name)] = row;
  }
  return out;
}

}  // namespace

void bind_info(py::module_& m) {
  m.attr("__version__") = PYCOMM_VERSION;
  m.def("mpi_info", &mpi);
  m.def("libmpi_path", [] { return mpi_info().path; });
  m.def("mpi_abort", &mpi_abort, py::arg("code"),
        "Ends every process of the MPI job. Returns only where MPI does not run.");
  m.def("isa", [] { return std::string(kernels().isa); }, "The instruction set of the kernels in use.");
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const Kernels* table : available_kernels()) names.emplace_back(table->isa);
    return names;
  });
  m.def("transports", &transports);
  m.def("codecs", &codecs);
  m.def("algorithms", &algorithms);
  m.def(
      "supports",
      [](const std::string& name, int size) {
        const Algorithm& algorithm = Registry<Algorithm>::instance().get(name, "algorithm");
        return !algorithm.supports || algorithm.supports(size);
      },
      py::arg("algorithm"), py::arg("size"), "Whether an algorithm serves that many ranks.");
}

}  // namespace pycomm::bindings
