#include "engine/engine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "core/error.h"
#include "engine/wire.h"

namespace pycomm {
namespace {

// A rank alone needs nobody.
class Alone final : public Bootstrap {
 public:
  std::vector<std::string> exchange(const std::string& bytes, double) override { return {bytes}; }
};

std::unique_ptr<Bootstrap> open_bootstrap(const Environment& environment) {
  for (const BootstrapEntry* entry : Registry<BootstrapEntry>::instance().all())
    if (auto bootstrap = entry->create(environment)) return bootstrap;
  if (environment.size == 1) return std::make_unique<Alone>();
  throw TransportError(text("rank ", environment.rank, " of ", environment.size,
                            " was given no way to meet the others; known bootstraps: ",
                            Registry<BootstrapEntry>::instance().names()));
}

// The cores that this process may run on.
struct Cores {
  int count = 1;
  std::uint32_t which = 0;  // equal numbers: the same ones
};
Cores cores_of_this_process() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
    return {static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)), 0};
  return {CPU_COUNT(&allowed), digest_of(&allowed, sizeof(allowed))};
}

// What a rank tells the others once it is connected.
struct Introduction {
  std::int64_t segment_bytes = std::int64_t{1} << 20;
  Cores cores = cores_of_this_process();
  std::string row;  // of Links

  std::string to_text() const { return text(segment_bytes, ' ', cores.count, ' ', cores.which, ' ', row); }
  static Introduction from_text(const std::string& said) {
    Introduction out;
    std::istringstream in(said);
    in >> out.segment_bytes >> out.cores.count >> out.cores.which >> std::ws;
    std::getline(in, out.row);
    return out;
  }
};

}  // namespace

std::shared_ptr<Engine> Engine::create(const Environment& environment, const Settings& settings,
                                       bool progress_thread) {
  std::shared_ptr<Engine> engine(new Engine);
  engine->rank_ = environment.rank;
  engine->size_ = environment.size;
  engine->progress_thread_ = progress_thread;
  engine->parts_ = std::make_unique<Parts>();
  Parts& parts = *engine->parts_;
  parts.environment_owner = environment.owner;
  parts.bootstrap = open_bootstrap(environment);
  engine->agree(settings);
  const Settings& agreed = engine->settings_;
  const Exchange exchange = [&](const std::string& bytes) {
    return parts.bootstrap->exchange(bytes, agreed.timeout_s);
  };
  Environment placed = environment;
  if (agreed.heap_mb > 0) placed.heap_bytes = agreed.heap_mb << 20;
  parts.router = Router::connect(placed, exchange, agreed.transports, agreed.nodes);
  parts.router->set_pacing(agreed.segment_bytes, agreed.window);
  parts.pinned = std::make_unique<PinnedMemory>(parts.router->any_peer_memory());

  engine->introduce(exchange);
  parts.driver = std::make_unique<Driver>(*parts.router, parts.trace, agreed.in_flight, progress_thread);
  return engine;
}

void Engine::introduce(const Exchange& exchange) {
  const Router& router = *parts_->router;
  Introduction mine;
  std::vector<std::string> kinds;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer != rank_) mine.segment_bytes = std::min(mine.segment_bytes, router.pacing(peer).segment_bytes);
    kinds.push_back(peer == rank_ ? "-" : router.kind_to(peer));
  }
  mine.row = Links::row_text(kinds);
  std::vector<Introduction> all;
  std::vector<std::string> rows;
  segment_bytes_ = mine.segment_bytes;
  for (const std::string& said : exchange(mine.to_text())) {
    all.push_back(Introduction::from_text(said));
    rows.push_back(all.back().row);
    segment_bytes_ = std::min(segment_bytes_, all.back().segment_bytes);
  }
  links_.emplace(rows);
  int sharing = 0;
  for (int rank = 0; rank < size_; ++rank)
    sharing +=
        all[rank].cores.which == all[0].cores.which && (rank == 0 || !is_network(links_->kind(0, rank)));
  crowd_ = std::max(1.0, static_cast<double>(sharing) / all[0].cores.count);
}

void Engine::agree(const Settings& mine) {
  std::string published = text("wire_version=", int{kWireVersion}, '\n', mine.to_text());
  if (rank_ == 0) published += '\n' + mine.table;
  auto all = parts_->bootstrap->exchange(published, mine.timeout_s);
  const auto newline = all[0].find('\n');
  const auto table_at = all[0].find('\n', newline + 1);
  const std::string table = all[0].substr(table_at + 1);
  all[0].resize(table_at);
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] == all[0]) continue;
    if (all[rank].substr(0, all[rank].find('\n')) != all[0].substr(0, newline))
      throw MismatchError(text("rank ", rank, " runs another pycomm (",
                               all[rank].substr(0, all[rank].find('\n')), ") than rank 0 (",
                               all[0].substr(0, newline), ")"));
    if (rank_ == 0)
      warnings_.push_back(text("rank ", rank, " was started with other settings (",
                               all[rank].substr(all[rank].find('\n') + 1), ") than rank 0 (",
                               all[0].substr(newline + 1), "); all ranks use those of rank 0"));
  }
  PYCOMM_CHECK(!table.starts_with('!'), table.substr(1));
  settings_ = Settings::from_text(all[0].substr(newline + 1));
  selection_ = std::make_shared<const Selector::Settings>(
      Selector::Settings{Rules(settings_.algo, "PYCOMM_ALGO"), Table(table)});
}

void Engine::check_usable() const {
  fork_guard_.check();
  if (closed_) throw Aborted("pycomm has been shut down in this process");
}

bool Engine::close() {
  if (fork_guard_.forked()) return true;
  if (closed_.exchange(true)) return !leaks_;
  if (parts_->driver && !parts_->driver->stop()) {
    leaks_ = true;
    return false;
  }
  // The driver stays, to refuse calls of other threads.
  parts_->router.reset();
  parts_->bootstrap.reset();
  return true;
}

Engine::~Engine() {
  const bool forked = fork_guard_.forked();
  if (!forked) close();
  // A transport may still write to our buffers: then nothing of this may be freed.
  if (forked || leaks_) static_cast<void>(parts_.release());
}

}  // namespace pycomm
