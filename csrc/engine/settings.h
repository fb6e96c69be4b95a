// What a user can set through the environment. At init rank 0's values are used by all ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pycomm {

struct Settings {
  double timeout_s = 300.0;        // PYCOMM_TIMEOUT_S
  std::int64_t segment_bytes = 0;  // PYCOMM_SEGMENT_BYTES; 0: as the transport measured
  int window = 0;  // PYCOMM_WINDOW, segments in flight per peer and direction; 0: as the transport measured
  int in_flight = 4;              // PYCOMM_IN_FLIGHT, collectives of one communicator that advance at once
  std::int64_t heap_mb = 0;       // PYCOMM_HEAP_MB, memory that a rank can share on its node; 0: half of all
  std::int64_t trace_events = 0;  // memory of the trace; 0: none. Asked for by init(), not a variable
  std::vector<std::string> transports;  // PYCOMM_TRANSPORTS, a comma-separated list; empty: all that work
  // PYCOMM_NODES, a number for each rank, "0,0,1,1": ranks of different numbers do not map each other's
  // memory even where they could. So one machine stands for several. Empty: they do.
  std::vector<int> nodes;

  // Throws InvalidArgument naming the variable, what it held and what it takes.
  static Settings from_environment();

  // "timeout_s=300 segment_bytes=0 ..." and back.
  std::string to_text() const;
  static Settings from_text(const std::string& text);
};

}  // namespace pycomm
