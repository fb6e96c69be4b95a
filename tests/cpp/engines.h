// Engines of ranks that are threads, and vectors whose sums are known.
#pragma once

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/communicator.h"
#include "engine/thread_world.h"
#include "ranks.h"

namespace pycomm {

using Body = std::function<void(std::shared_ptr<Communicator>)>;

struct Options {
  std::string transport = "inproc";
  bool progress_thread = false;
  std::int64_t segment_bytes = 256;
  std::int64_t heap_mb = 0;
  std::vector<int> nodes = {};  // of each rank; between them messages are copied. Empty: one node
};

inline bool is_mapped(const std::string& transport) {
  return Registry<TransportEntry>::instance().get(transport, "transport").mapped;
}

// Runs `body` on every rank; the first exception is rethrown here.
inline void run_engines(int size, const Options& options, const Body& body) {
  ThreadWorld world(size);
  run_ranks(size, [&](int rank) {
    Settings settings;
    settings.transports = {options.transport};
    if (!options.nodes.empty()) settings.transports.push_back("inproc");
    settings.nodes = options.nodes;
    settings.segment_bytes = options.segment_bytes;
    settings.timeout_s = 60;
    settings.heap_mb = options.heap_mb;
    try {
      auto handles = world.handles();
      handles["shm"] = handles["inproc"];  // ranks that are threads use it when they are told to
      const auto engine = Engine::create({rank, size, handles, nullptr}, settings, options.progress_thread);
      std::vector<int> ranks(size);
      std::iota(ranks.begin(), ranks.end(), 0);
      body(std::make_shared<Communicator>(engine, std::make_shared<Group>(0, rank, ranks),
                                          engine->segment_bytes()));
      engine->close();
    } catch (...) {
      world.abort("a rank failed");
      throw;
    }
  });
}

inline void wait(Communicator& communicator, const std::shared_ptr<Work>& work) {
  while (!communicator.wait(*work, 1.0)) {
  }
  if (const Failure* failure = work->failure()) raise(failure->kind, failure->what);
}

inline View view_of(std::vector<float>& values) {
  return {reinterpret_cast<std::byte*>(values.data()), static_cast<std::int64_t>(values.size()), DType::f32};
}

inline Call all_reduce(const View& view) {
  Call call;
  call.collective = Collective::all_reduce;
  call.input = call.output = view;
  return call;
}

inline std::vector<float> contribution(int rank, std::int64_t count) {
  std::vector<float> values(count);
  for (std::int64_t i = 0; i < count; ++i) values[i] = static_cast<float>((i + rank) % 11);
  return values;
}

inline std::vector<float> sum_of_contributions(int size, std::int64_t count) {
  std::vector<float> values(count);
  for (int rank = 0; rank < size; ++rank)
    for (std::int64_t i = 0; i < count; ++i) values[i] += static_cast<float>((i + rank) % 11);
  return values;
}

}  // namespace pycomm
