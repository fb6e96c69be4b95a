#include "transport/router.h"

#include <algorithm>
#include <map>
#include <sstream>

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

}  // namespace

std::unique_ptr<Router> Router::connect(const Environment& environment, const Exchange& exchange,
                                        const std::vector<std::string>& allowed) {
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

  // Ours and theirs: a string of '0' and '1', a row per peer, in order of name.
  const auto published = exchange(pack(addresses));
  std::string mine;
  for (int peer = 0; peer < environment.size; ++peer) {
    const auto theirs = unpack(published[peer]);
    for (auto& [name, transport] : router->transports_) {
      const auto address = theirs.find(name);
      const bool reached =
          peer != environment.rank && address != theirs.end() && transport->reaches(peer, address->second);
      if (reached) mine += text(peer, ' ', name, '\n');
    }
  }
  const auto reaches = exchange(mine);
  router->route_.assign(environment.size, -1);
  router->connected_ = std::vector<std::atomic<bool>>(environment.size);
  std::string unreached;
  for (int peer = 0; peer < environment.size; ++peer) {
    if (peer == environment.rank) continue;
    const auto has = [](const std::string& lines, const std::string& line) {
      return text('\n', lines).find(text('\n', line, '\n')) != std::string::npos;
    };
    for (std::size_t i = 0; i < router->transports_.size() && router->route_[peer] < 0; ++i) {
      const std::string& name = router->transports_[i].name;
      if (has(mine, text(peer, ' ', name)) && has(reaches[peer], text(environment.rank, ' ', name)))
        router->route_[peer] = static_cast<int>(i);
    }
    if (router->route_[peer] < 0) unreached += text(unreached.empty() ? "" : ", ", peer);
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

PeerMemory* Router::peer_memory(const std::vector<int>& ranks) const {
  Transport* common = nullptr;
  for (int rank : ranks) {
    if (rank == rank_) continue;
    if (common && common != &transport_for(rank)) return nullptr;
    common = &transport_for(rank);
  }
  return common ? common->peer_memory() : nullptr;
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
