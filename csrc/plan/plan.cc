#include "plan/plan.h"

#include <utility>

namespace pycomm {

Step send(int peer, int chunk, Buffer src) {
  return {.op = Op::send, .peers = {peer}, .chunk = chunk, .src = src};
}

Step recv(int peer, int chunk, Buffer dst) {
  return {.op = Op::recv, .peers = {peer}, .chunk = chunk, .dst = dst};
}

Step recv_reduce(int peer, int chunk, Buffer src, Buffer dst) {
  return {.op = Op::recv_reduce, .peers = {peer}, .chunk = chunk, .src = src, .dst = dst};
}

Step copy(int chunk, Buffer src, Buffer dst) {
  return {.op = Op::copy, .chunk = chunk, .src = src, .dst = dst};
}

Step reduce(int chunk, Buffer dst, std::vector<Buffer> sources) {
  return {.op = Op::reduce, .chunk = chunk, .dst = dst, .sources = std::move(sources)};
}

Step meet(std::vector<int> peers) {
  return {.op = Op::meet, .peers = std::move(peers)};
}

Step reduce_from(std::vector<int> peers, int chunk, Buffer src, Buffer dst) {
  return {.op = Op::reduce_from, .peers = std::move(peers), .chunk = chunk, .src = src, .dst = dst};
}

Step store_to(std::vector<int> peers, int chunk, Buffer src, Buffer dst) {
  return {.op = Op::store_to, .peers = std::move(peers), .chunk = chunk, .src = src, .dst = dst};
}

Step as_final(Step step) {
  step.final = true;
  return step;
}

Step published(Step step) {
  step.publish = true;
  return step;
}

bool has_chunk(const Spec& spec, Buffer buffer, int chunk) {
  const bool input = buffer == kInput, own = chunk == spec.rank, at_root = spec.rank == spec.root;
  if (!input && !(buffer == kOutput)) return is_scratch(buffer);
  switch (spec.collective) {
    case Collective::all_reduce:
    case Collective::send:
    case Collective::recv:
      return true;
    case Collective::reduce_scatter:
      return input || own;
    case Collective::all_gather:
      return !input || own;
    case Collective::broadcast:
      return !input;
    case Collective::reduce:
      return input || at_root;
    case Collective::gather:
      return input ? own : at_root;
    case Collective::scatter:
      return input ? at_root : own;
    case Collective::all_to_all:
      return (input ? chunk / spec.size : chunk % spec.size) == spec.rank;
    case Collective::barrier:
      return false;
  }
  return false;
}

int chunks_of_parts(Collective collective, int size) {
  return collective == Collective::all_to_all ? size * size : size;
}

std::string to_text(Buffer buffer) {
  if (buffer == kInput) return "input";
  if (buffer == kOutput) return "output";
  return text("scratch[", buffer.id - 2, "]");
}

namespace {

template <class Items, class Show>
std::string joined(const Items& items, Show show) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ", ") + show(item);
  return out;
}

std::string without_marks(const Step& step) {
  const std::string peers = joined(step.peers, [](int peer) { return std::to_string(peer); });
  const std::string sources = joined(step.sources, [](Buffer source) { return to_text(source); });
  const std::string head = text(name_of(step.op), " chunk ", step.chunk);
  const std::string src = to_text(step.src), dst = to_text(step.dst);
  switch (step.op) {
    case Op::send:
      return text(head, " of ", src, " to ", peers);
    case Op::recv:
      return text(head, " from ", peers, " into ", dst);
    case Op::recv_reduce:
      return text(head, " of ", src, " and from ", peers, " into ", dst);
    case Op::copy:
      return text(head, " of ", src, " into ", dst);
    case Op::reduce:
      return text(head, " of ", sources, " into ", dst);
    case Op::meet:
      return text("meet ", peers);
    case Op::reduce_from:
      return text(head, " of ", src, " of ", peers, " into ", dst);
    case Op::store_to:
      return text(head, " of ", src, " into ", dst, " of ", peers);
  }
  return head;
}

}  // namespace

std::string to_text(const Step& step) {
  return without_marks(step) + (step.final ? ", final" : "") + (step.publish ? ", published" : "");
}

std::string to_text(const Plan& plan) {
  std::string out = text("chunks ", plan.chunks, "\n");
  for (std::size_t stage = 0; stage < plan.stages.size(); ++stage) {
    out += text("stage ", stage, "\n");
    for (const Step& step : plan.stages[stage].steps) out += text("  ", to_text(step), "\n");
  }
  return out;
}

Collective collective_of(const Algorithm& algorithm) {
  const auto prefix = std::string_view(algorithm.name).substr(0, algorithm.name.find(':'));
  for (int i = 0; i < kCollectiveCount; ++i)
    if (prefix == kCollectiveNames[i]) return static_cast<Collective>(i);
  throw Error(ErrorKind::internal, text("algorithm '", algorithm.name, "' is not named 'collective:name'"));
}

std::string short_name(const Algorithm& algorithm) {
  return algorithm.name.substr(algorithm.name.find(':') + 1);
}

std::vector<const Algorithm*> algorithms_for(Collective collective) {
  std::vector<const Algorithm*> out;
  for (const Algorithm* algorithm : Registry<Algorithm>::instance().all())
    if (collective_of(*algorithm) == collective) out.push_back(algorithm);
  return out;
}

const Algorithm& algorithm_named(Collective collective, std::string_view name) {
  // On the path of every call: no string is built.
  const std::string_view prefix = name_of(collective);
  for (const Algorithm* algorithm : Registry<Algorithm>::instance().all()) {
    const std::string_view full = algorithm->name;
    if (full.size() == prefix.size() + 1 + name.size() && full.starts_with(prefix) && full.ends_with(name))
      return *algorithm;
  }
  const std::string known =
      joined(algorithms_for(collective), [](const Algorithm* algorithm) { return short_name(*algorithm); });
  throw InvalidArgument(text("no algorithm '", name, "' for ", name_of(collective), "; there are: ", known));
}

}  // namespace pycomm
