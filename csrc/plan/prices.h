// What a machine charges for what plans do. All of it is measured: python -m pycomm.tune.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace pycomm {

// One kind of link between two ranks.
struct LinkPrice {
  double latency_s = 0;  // alpha: from one end to the other
  double message_s = 0;  // of a message, at each end
  double byte_s = 0;     // beta: on a network along the link, elsewhere copied by the receiver
};

struct Prices {
  double call_s = 0;          // any call, however small
  double byte_reduced_s = 0;  // gamma: per byte of an operand
  double byte_copied_s = 0;   // within a rank
  double byte_read_s = 0;     // of a peer's memory and our own, per operand
  double byte_stored_s = 0;   // to one peer's memory
  double byte_coded_s = 0;    // encoded or decoded
  double switch_s = 0;        // latency besides, where ranks share cores: the peer must get its turn first
  double half_factor = 1;     // 16-bit elements are reduced that much slower, per byte
  double far_factor = 1;      // bytes cost that much more ...
  double cache_bytes = 1e18;  // ... as far as what all ranks of a machine touch is more than this
  std::map<std::string, LinkPrice> links = {};  // by kind

  // The numbers by name ("call_s", "shm.byte_s"): what tables hold and fits change.
  double* find(const std::string& name);
  std::vector<std::string> names() const;
  // Of a kind that has no price, those of mpi, over a network or not.
  const LinkPrice& link(const std::string& kind) const;
};

// Fitted to python -m pycomm.tune of 2 and of 4 ranks on 2 cores (AMD EPYC, 32 MB of last-level cache), those
// of "mpi" to two ranks over Open MPI there; "mpi/network" is the rate of a 1 Gbit/s wire and a latency that
// is usual there, coding that of the kernels. Another machine should be measured.
const Prices& built_in_prices();

}  // namespace pycomm
