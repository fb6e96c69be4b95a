#include "engine/engine.h"

#include <algorithm>

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

  std::int64_t segment = std::int64_t{1} << 20;
  for (int peer = 0; peer < environment.size; ++peer)
    if (peer != environment.rank) segment = std::min(segment, parts.router->pacing(peer).segment_bytes);
  for (const std::string& theirs : exchange(std::to_string(segment)))
    segment = std::min<std::int64_t>(segment, std::stoll(theirs));
  engine->segment_bytes_ = segment;
  parts.driver = std::make_unique<Driver>(*parts.router, parts.trace, agreed.in_flight, progress_thread);
  return engine;
}

void Engine::agree(const Settings& mine) {
  const std::string published = text("wire_version=", int{kWireVersion}, '\n', mine.to_text());
  const auto all = parts_->bootstrap->exchange(published, mine.timeout_s);
  const auto newline = all[0].find('\n');
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
  settings_ = Settings::from_text(all[0].substr(newline + 1));
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
