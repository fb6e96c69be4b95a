#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "bindings/bindings.h"
#include "engine/communicator.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

struct Memory {
  std::shared_ptr<std::byte> data;
  py::ssize_t bytes = 0;
};

}  // namespace

void bind_memory(py::module_& m) {
  py::class_<Memory>(m, "Memory", py::buffer_protocol(),
                     "Bytes that peers can address, until it is collected.")
      .def_buffer([](Memory& memory) {
        return py::buffer_info(memory.data.get(), 1, "B", 1, {memory.bytes}, {py::ssize_t{1}});
      });
  m.def(
      "allocate",
      [](const Communicator& communicator, std::size_t bytes) -> std::optional<Memory> {
        communicator.engine().check_usable();
        PeerMemory* const memory = communicator.engine().router().any_peer_memory();
        if (!memory) return std::nullopt;
        return Memory{memory->allocate(bytes), static_cast<py::ssize_t>(bytes)};
      },
      py::arg("communicator"), py::arg("bytes"),
      "Memory that peers of this communicator's world can address; None where they can address none.");
}

}  // namespace pycomm::bindings
