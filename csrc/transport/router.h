// Gives each pair of ranks its best transport: the one of highest priority that both ends say they can use.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transport/transport.h"

namespace pycomm {

// One collective exchange of bytes: everyone's, by rank.
using Exchange = std::function<std::vector<std::string>(const std::string& bytes)>;

class Router {
 public:
  // Collective. Opens the named transports (empty: all that work here), publishes addresses, finds a
  // transport for every pair, and the nodes. Where `apart` gives ranks different numbers, they do not map
  // each other's memory (empty: they may). Throws TransportError naming the pairs that nothing reaches, and
  // why each transport is missing; InvalidArgument when `apart` is of another size.
  static std::unique_ptr<Router> connect(const Environment& environment, const Exchange& exchange,
                                         const std::vector<std::string>& allowed,
                                         const std::vector<int>& apart = {});

  // Connected: the first use opens the connection. Driver only.
  Transport& to(int peer);
  // World ranks to which a connection has been opened from here.
  std::vector<int> connections() const;
  const std::string& name_to(int peer) const { return transports_[route_[peer]].name; }
  // As the transport says, unless settings override it.
  Pacing pacing(int peer) const;
  void set_pacing(std::int64_t segment_bytes, int window);  // 0: as the transport says

  // The node of each rank, the same on all ranks: a node is a set of ranks that all address each other's
  // memory, through transports of one name. Numbered in order of their lowest ranks.
  const std::vector<int>& node_of() const { return node_of_; }
  // Through which that peer's memory is addressable; null when it is not.
  PeerMemory* peer_memory(int peer) const { return transport_for(peer).peer_memory(); }
  // Any through which some peer of ours addresses memory; null when there is none.
  PeerMemory* any_peer_memory() const;

  bool poll_control(ControlFrame* frame) const;
  std::optional<int> poll_departure() const;
  int rank() const { return rank_; }
  int size() const { return static_cast<int>(route_.size()); }

 private:
  Transport& transport_for(int peer) const { return *transports_[route_[peer]].transport; }

  struct Open {
    std::string name;
    std::unique_ptr<Transport> transport;
  };
  int rank_ = 0;
  std::vector<Open> transports_;
  std::vector<int> route_;                    // by peer; our own entry is unused
  std::vector<int> node_of_;                  // by rank
  std::vector<std::atomic<bool>> connected_;  // by peer; written by the driver, read by anyone: only a fact
  std::int64_t segment_bytes_ = 0;
  int window_ = 0;
};

}  // namespace pycomm
