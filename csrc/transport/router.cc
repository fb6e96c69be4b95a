#include "transport/router.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <sstream>
#include <string_view>

#include "core/error.h"

namespace pycomm {
namespace {

// "name\nlength\nbytes" per transport: addresses are opaque.
std::string pack(const std::map<std::string, std::string>& addresses) {
  std::ostringstream out;
  for (const auto& [name, address] : addresses) out << name << '\n' << address.size() << '\n' << address;
  return out.str();
}

std::map<std::string, std::string> unpack(const std::string& bytes) {
  std::map<std::string, std::string> addresses;
  std::istringstream in(bytes);
  std::string name;
  std::string length;
  while (std::getline(in, name) && std::getline(in, length)) {
    std::string address(std::stoul(length), '\0');
    in.read(address.data(), static_cast<std::streamsize>(address.size()));
    addresses[name] = address;
  }
  return addresses;
}

bool together(const std::vector<int>& apart, int a, int b) {
  return apart.empty() || apart[a] == apart[b];
}

// Who reaches whom by what, as all ranks said it; so all find the same routes between any two.
class Routes {
 public:
  using Entries = std::vector<const TransportEntry*>;

  // `entries` in order of priority. Of each rank: the names of its transports, a newline, and a byte for each
  // peer: its highest bit, and bit i where the i-th of them reaches.
  Routes(const Entries& entries, const std::vector<std::string>& said) : entries_(entries) {
    PYCOMM_DCHECK(entries.size() <= 7);
    for (const std::string& one : said) {
      const auto newline = one.find('\n');
      std::istringstream names(one.substr(0, newline));
      std::vector<std::uint8_t> bit_of;  // in `entries`, of each of this rank's own bits
      for (std::string name; names >> name;) bit_of.push_back(bit_named(name));
      std::vector<std::uint8_t>& row = masks_.emplace_back();
      for (const char byte : std::string_view(one).substr(newline + 1)) {
        std::uint8_t mask = 0;
        for (std::size_t i = 0; i < bit_of.size(); ++i)
          if (static_cast<std::uint8_t>(byte) >> i & 1U) mask |= bit_of[i];
        row.push_back(mask);
      }
    }
  }

  // Null when there is none.
  const TransportEntry* between(int a, int b) const {
    const std::uint8_t both = masks_[a][b] & masks_[b][a];
    return both == 0 ? nullptr : entries_[std::countr_zero(both)];
  }

  // The lowest rank without a node begins the next, and those after it join that map all who have.
  std::vector<int> nodes() const {
    const int size = static_cast<int>(masks_.size());
    std::vector<int> node_of(size, -1);
    int count = 0;
    for (int first = 0; first < size; ++first) {
      if (node_of[first] >= 0) continue;
      std::vector<int> members = {first};
      for (int rank = first + 1; rank < size; ++rank)
        if (node_of[rank] < 0 && maps_all(rank, members)) members.push_back(rank);
      for (int member : members) node_of[member] = count;
      ++count;
    }
    return node_of;
  }

 private:
  std::uint8_t bit_named(const std::string& name) const {
    for (std::size_t i = 0; i < entries_.size(); ++i)
      if (entries_[i]->name == name) return static_cast<std::uint8_t>(1U << i);
    return 0;  // another build has it
  }

  bool maps_all(int rank, const std::vector<int>& members) const {
    const TransportEntry* const way = between(members[0], rank);
    const auto by_it = [&](int member) { return between(member, rank) == way; };
    return way && way->mapped && std::all_of(members.begin(), members.end(), by_it) &&
           (members.size() < 2 || between(members[0], members[1]) == way);
  }

  const Entries entries_;
  std::vector<std::vector<std::uint8_t>> masks_;  // by rank, by peer; bit i: entries_[i]
};

}  // namespace

std::unique_ptr<Router> Router::connect(const Environment& environment, const Exchange& exchange,
                                        const std::vector<std::string>& allowed,
                                        const std::vector<int>& apart) {
  PYCOMM_CHECK(apart.empty() || std::ssize(apart) == environment.size, "PYCOMM_NODES names the nodes of ",
               apart.size(), " ranks; the job has ", environment.size);
  for (const std::string& name : allowed) Registry<TransportEntry>::instance().get(name, "transport");
  auto entries = Registry<TransportEntry>::instance().all();
  std::stable_sort(entries.begin(), entries.end(),
                   [](auto* a, auto* b) { return a->priority > b->priority; });

  auto router = std::make_unique<Router>();
  router->rank_ = environment.rank;
  std::map<std::string, std::string> addresses;
  std::string missing;
  for (const TransportEntry* entry : entries) {
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), entry->name) == allowed.end()) continue;
    std::string why;
    auto transport = entry->create(environment, &why);
    if (!transport) {
      missing += text("; ", entry->name, ": ", why);
      continue;
    }
    addresses[entry->name] = transport->address();
    router->transports_.push_back({entry->name, std::move(transport)});
  }

  const auto published = exchange(pack(addresses));
  std::string mine;
  for (const Open& open : router->transports_) mine += open.name + ' ';
  mine += '\n';
  for (int peer = 0; peer < environment.size; ++peer) {
    const auto theirs = unpack(published[peer]);
    std::uint8_t mask = 0x80;  // never a zero byte
    for (std::size_t i = 0; i < router->transports_.size() && peer != environment.rank; ++i) {
      const auto& [name, transport] = router->transports_[i];
      if (transport->peer_memory() && !together(apart, environment.rank, peer)) continue;
      const auto address = theirs.find(name);
      if (address != theirs.end() && transport->reaches(peer, address->second)) mask |= 1U << i;
    }
    mine += static_cast<char>(mask);
  }
  const Routes routes(entries, exchange(mine));
  router->route_.assign(environment.size, -1);
  router->node_of_ = routes.nodes();
  router->connected_ = std::vector<std::atomic<bool>>(environment.size);
  std::string unreached;
  for (int peer = 0; peer < environment.size; ++peer) {
    if (peer == environment.rank) continue;
    const TransportEntry* const entry = routes.between(environment.rank, peer);
    for (std::size_t i = 0; entry && i < router->transports_.size(); ++i)
      if (router->transports_[i].name == entry->name) router->route_[peer] = static_cast<int>(i);
    if (!entry) unreached += text(unreached.empty() ? "" : ", ", peer);
  }
  if (!unreached.empty())
    throw TransportError(text("rank ", environment.rank, " has no transport to rank ", unreached, missing));
  return router;
}

Transport& Router::to(int peer) {
  Transport& transport = transport_for(peer);
  if (!connected_[peer].load(std::memory_order_relaxed)) {
    transport.connect(peer);
    connected_[peer].store(true, std::memory_order_relaxed);
  }
  return transport;
}

std::vector<int> Router::connections() const {
  std::vector<int> peers;
  for (int peer = 0; peer < size(); ++peer)
    if (connected_[peer].load(std::memory_order_relaxed)) peers.push_back(peer);
  return peers;
}

Pacing Router::pacing(int peer) const {
  Pacing pacing = transport_for(peer).pacing(peer);
  if (segment_bytes_ > 0) pacing.segment_bytes = segment_bytes_;
  if (window_ > 0) pacing.window = window_;
  return pacing;
}

void Router::set_pacing(std::int64_t segment_bytes, int window) {
  segment_bytes_ = segment_bytes;
  window_ = window;
}

PeerMemory* Router::any_peer_memory() const {
  for (int peer = 0; peer < size(); ++peer)
    if (peer != rank_)
      if (PeerMemory* const memory = transport_for(peer).peer_memory()) return memory;
  return nullptr;
}

std::optional<int> Router::poll_departure() const {
  for (const Open& open : transports_)
    if (const auto peer = open.transport->poll_departure()) return peer;
  return std::nullopt;
}

bool Router::poll_control(ControlFrame* frame) const {
  for (const Open& open : transports_)
    if (open.transport->poll_control(frame)) return true;
  return false;
}

}  // namespace pycomm
