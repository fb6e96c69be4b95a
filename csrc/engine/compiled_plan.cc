#include "engine/compiled_plan.h"

#include <algorithm>
#include <map>
#include <utility>

namespace pycomm {
namespace {

using Place = std::pair<int, int>;  // buffer and chunk; a scratch slot is one place whatever the chunk

struct Touches {
  std::vector<Place> reads;
  std::vector<Place> writes;
};

class Dependencies {
 public:
  explicit Dependencies(bool in_place) : in_place_(in_place) {}

  // Steps must be added in order. Readers wait for the last writers; writers wait for those and for the
  // readers since: by induction nothing else is needed.
  void add(int index, CompiledStep& compiled) {
    const Step& step = compiled.step;
    const Touches touches = touches_of(step);
    for (const Place& place : touches.reads) {
      wait_for(compiled, history_[place].writers);
      for (const Publisher& publisher : history_[place].publishers)
        if (publisher.stage < compiled.stage) wait_for(compiled, {publisher.step});
    }
    for (const Place& place : touches.writes) {
      wait_for(compiled, history_[place].writers);
      wait_for(compiled, history_[place].readers);
    }
    for (const Place& place : touches.writes) {
      History& history = history_[place];
      // Chunks in one slot may differ by a segment, so that waiting for the last of them does not include the
      // others.
      if (place.first < 2) history = {};
      history.writers.push_back(index);
    }
    for (const Place& place : touches.reads)
      if (std::find(touches.writes.begin(), touches.writes.end(), place) == touches.writes.end())
        history_[place].readers.push_back(index);
    if (step.publish) history_[touches.reads[0]].publishers.push_back({index, compiled.stage});
    if (last_meet_ >= 0) compiled.after_all.push_back(last_meet_);
    if (step.op == Op::meet) {
      for (int earlier = last_meet_ + 1; earlier < index; ++earlier) compiled.after_all.push_back(earlier);
      last_meet_ = index;
    }
  }

 private:
  // A published send replaces its src: later stages read what it leaves, those of its own stage share it.
  struct Publisher {
    int step;
    int stage;
  };
  struct History {
    std::vector<int> writers;
    std::vector<int> readers;
    std::vector<Publisher> publishers;
  };

  static void wait_for(CompiledStep& compiled, const std::vector<int>& steps) {
    for (int step : steps)
      if (std::find(compiled.after.begin(), compiled.after.end(), step) == compiled.after.end())
        compiled.after.push_back(step);
  }

  Place place(Buffer buffer, int chunk) const {
    if (is_scratch(buffer)) return {buffer.id, 0};
    if (in_place_ && buffer == kInput) return {kOutput.id, chunk};
    return {buffer.id, chunk};
  }

  Touches touches_of(const Step& step) const {
    Touches touches;
    const Place src = place(step.src, step.chunk);
    const Place dst = place(step.dst, step.chunk);
    switch (step.op) {
      case Op::send:
        touches.reads = {src};
        break;
      case Op::recv:
        touches.writes = {dst};
        break;
      case Op::recv_reduce:
      case Op::copy:
      case Op::reduce_from:
        touches.reads = {src};
        touches.writes = {dst};
        break;
      case Op::reduce:
        for (Buffer source : step.sources) touches.reads.push_back(place(source, step.chunk));
        touches.writes = {dst};
        break;
      case Op::store_to:
        touches.reads = {src};
        break;
      case Op::meet:
        break;
    }
    return touches;
  }

  bool in_place_;
  int last_meet_ = -1;
  std::map<Place, History> history_;
};

Channel& channel_of(std::vector<Channel>& channels, int peer, bool outgoing) {
  for (Channel& channel : channels)
    if (channel.peer == peer && channel.outgoing == outgoing) return channel;
  return channels.emplace_back(Channel{peer, outgoing, {}});
}

int slots_in(const Step& step) {
  int slots = std::max(step.src.id, step.dst.id) - 1;
  for (Buffer source : step.sources) slots = std::max(slots, source.id - 1);
  return std::max(slots, 0);
}

}  // namespace

CompiledPlan::CompiledPlan(const Plan& plan, bool in_place)
    : in_place(in_place), chunks(plan.chunks), stages(static_cast<int>(plan.stages.size())) {
  Dependencies dependencies(in_place);
  for (int stage = 0; stage < stages; ++stage) {
    for (const Step& step : plan.stages[stage].steps) {
      const int index = static_cast<int>(steps.size());
      CompiledStep& compiled = steps.emplace_back(CompiledStep{step, stage, {}, {}});
      dependencies.add(index, compiled);
      scratch_slots = std::max(scratch_slots, slots_in(step));
      switch (step.op) {
        case Op::send:
          messages = true;
          channel_of(channels, step.peers[0], true).steps.push_back(index);
          break;
        case Op::recv:
        case Op::recv_reduce:
          messages = true;
          channel_of(channels, step.peers[0], false).steps.push_back(index);
          break;
        case Op::meet:
          met = step.peers;  // every meet of a plan is with the same
          for (int peer : step.peers) {
            channel_of(channels, peer, true).steps.push_back(index);
            channel_of(channels, peer, false).steps.push_back(index);
          }
          break;
        default:
          local.push_back(index);
      }
    }
  }
}

CompiledPlan::CompiledPlan(const std::function<Plan(int rank)>& plan_of, int rank, int size, bool in_place)
    : CompiledPlan(plan_of(rank), in_place) {
  for (int peer : met) {
    const Plan theirs = plan_of(peer);
    for (const Stage& stage : theirs.stages) {
      for (const Step& step : stage.steps) {
        if (std::find(step.peers.begin(), step.peers.end(), rank) == step.peers.end()) continue;
        if (step.op == Op::reduce_from) expose(step.src, step.chunk).read = true;
        if (step.op == Op::store_to) expose(step.dst, step.chunk).written = true;
      }
    }
  }
  // What our own steps do with such a chunk, they do where the peers see it.
  for (const CompiledStep& compiled : steps) {
    const Step& step = compiled.step;
    if (step.op == Op::meet) continue;
    std::vector<Buffer> touched = step.sources;
    touched.insert(touched.end(), {step.src, step.dst});
    for (const Buffer buffer : touched) {
      if (!find_exposed(buffer, step.chunk)) continue;
      ExposedChunk& chunk = expose(buffer, step.chunk);
      chunk.read = true;
      chunk.written |= buffer == step.dst && step.op != Op::store_to;
    }
  }
}

ExposedChunk& CompiledPlan::expose(Buffer buffer, int chunk) {
  if (const ExposedChunk* const known = find_exposed(buffer, chunk)) return exposed[known - exposed.data()];
  const auto behind =
      std::upper_bound(exposed.begin(), exposed.end(), chunk,
                       [](int number, const ExposedChunk& other) { return number < other.chunk; });
  return *exposed.insert(behind, ExposedChunk{buffer, chunk});
}

const ExposedChunk* CompiledPlan::find_exposed(Buffer buffer, int chunk) const {
  auto found = std::lower_bound(exposed.begin(), exposed.end(), chunk,
                                [](const ExposedChunk& other, int number) { return other.chunk < number; });
  for (; found != exposed.end() && found->chunk == chunk; ++found)
    if ((in_place && !is_scratch(buffer)) || found->buffer == buffer) return &*found;
  return nullptr;
}

}  // namespace pycomm
