// Where this rank stands before anything is connected. A transport or a bootstrap looks up the handle that
// carries its own name ("mpi": Fortran handle of a communicator; "inproc": pointer to the shared world) and
// reports itself unavailable when it is missing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace pycomm {

struct Environment {
  int rank = 0;
  int size = 1;
  std::map<std::string, std::uintptr_t> handles;
  std::shared_ptr<void> owner = {};  // of what the handles point to; the engine holds it
  std::int64_t heap_bytes = 0;       // of memory shared with peers; 0: as the transport chooses
};

}  // namespace pycomm
