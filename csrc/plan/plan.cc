#include "plan/plan.h"

#include <algorithm>
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

Step added_in(Order order, Step step) {
  step.pairwise = order == Order::tree;
  return step;
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

std::vector<int> numbered(const std::vector<int>& nodes) {
  std::vector<int> node_of, found;
  for (const int node : nodes) {
    const auto known = std::find(found.begin(), found.end(), node);
    node_of.push_back(static_cast<int>(known - found.begin()));
    if (known == found.end()) found.push_back(node);
  }
  if (found.size() == nodes.size()) return {};
  return node_of;
}

std::vector<int> nodes_among(const std::vector<int>& node_of, const std::vector<int>& ranks) {
  std::vector<int> nodes;
  for (const int rank : ranks)
    if (!node_of.empty()) nodes.push_back(node_of[rank]);
  return numbered(nodes);
}

int chunks_of_parts(Collective collective, int size) {
  return collective == Collective::all_to_all ? size * size : size;
}

bool keeps(const Algorithm& algorithm, Order order, bool rounds) {
  if (order == Order::any) return true;
  const bool keeps_it = std::count(algorithm.orders.begin(), algorithm.orders.end(), order) > 0;
  return keeps_it && (algorithm.rounds_once || !rounds);
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
  std::string known;
  for (const Algorithm* algorithm : algorithms_for(collective))
    known += (known.empty() ? "" : ", ") + short_name(*algorithm);
  throw InvalidArgument(text("no algorithm '", name, "' for ", name_of(collective), "; there are: ", known));
}

}  // namespace pycomm
