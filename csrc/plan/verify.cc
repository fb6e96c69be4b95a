#include "plan/verify.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>

#include "plan/check.h"
#include "plan/schedule.h"
#include "plan/text.h"

namespace pycomm {
namespace {

// Names an expression by the names of its parts (the mixer of Steele, Lea and Flood's SplitMix).
std::uint64_t expression(std::uint64_t kind, std::uint64_t a, std::uint64_t b = 0) {
  std::uint64_t hash = kind;
  for (std::uint64_t part : {a, b}) {
    hash = (hash ^ part) + 0x9e3779b97f4a7c15u;
    hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
    hash ^= hash >> 31;
  }
  return hash;
}
enum : std::uint64_t { kLeaf = 1, kSum, kScaled, kCoded };

struct Value {
  int chunk = 0;
  std::vector<bool> ranks;    // whose contributions it holds
  std::uint64_t exact = 0;    // its expression without codecs
  std::uint64_t bits = 0;     // and with a lossy one
  std::uint64_t sum = 0;      // as exact, for any order of the two operands of an addition
  bool coded = false;         // it is Q(something), so that Q changes nothing
  bool received = false;      // it came as it is from another rank
  bool final = false;         // it passed the step marked final
  bool contribution = false;  // caller's data of a reducing collective, not yet taken from the input
};

Value coded(Value value) {
  if (!value.coded) value.bits = expression(kCoded, value.bits);
  value.coded = true;
  return value;
}

bool complete(const Value& value) {
  return std::count(value.ranks.begin(), value.ranks.end(), false) == 0;
}

bool is_of_one(const Value& value, int rank) {
  return value.ranks[rank] && std::count(value.ranks.begin(), value.ranks.end(), true) == 1;
}

// The name of a sum whose operands may be swapped.
std::uint64_t swappable_sum(std::uint64_t a, std::uint64_t b) {
  return expression(kSum, std::min(a, b), std::max(a, b));
}

// What Value::sum is of the contributions first ... first + count - 1, added in that order.
std::uint64_t ordered_sum(Order order, int chunk, int first, int count) {
  if (count == 1) return expression(kLeaf, first, chunk);
  const int left = order == Order::tree ? count / 2 : count - 1;
  return swappable_sum(ordered_sum(order, chunk, first, left),
                       ordered_sum(order, chunk, first + left, count - left));
}

std::string ranks_of(const Value& value) {
  std::string out;
  for (std::size_t rank = 0; rank < value.ranks.size(); ++rank)
    if (value.ranks[rank]) out += text(out.empty() ? "" : ", ", rank);
  return "{" + out + "}";
}

// What all places of all ranks hold while the steps run.
class Run {
 public:
  Run(Collective collective, int size, int chunks, const VerifyOptions& options)
      : reduces_(reduces(collective)),
        order_(options.order),
        rounds_once_(options.rounds_once),
        places_{chunks, options.in_place},
        memory_(size) {}

  // The caller's data in chunk `chunk` of rank `rank`'s input.
  void provide(int rank, int chunk) {
    Value value{.chunk = chunk, .ranks = std::vector<bool>(memory_.size()), .contribution = reduces_};
    value.ranks[rank] = true;
    value.exact = value.bits = value.sum = expression(kLeaf, rank, chunk);
    hold(rank, kInput, std::move(value));
  }

  void run(const Schedule& schedule) {
    for (const std::vector<int>& event : schedule.events) {
      const Node& node = schedule.nodes[event[0]];
      if (node.step->op == Op::send) {
        pass(node, schedule.nodes[event[1]]);
      } else if (node.step->op != Op::meet) {
        run_local(node);
      }
    }
  }

  // Null where nothing was written.
  const Value* held(int rank, Buffer buffer, int chunk) const {
    const auto found = memory_[rank].find(places_.of(buffer, chunk));
    return found == memory_[rank].end() ? nullptr : found->second.get();
  }

 private:
  void pass(const Node& sender, const Node& receiver) {
    const Step &send = *sender.step, &recv = *receiver.step;
    const Value own = read(sender, sender.rank, send.src);
    if (send.publish && own.received)
      throw Flaw(text(where(sender), " publishes what it received: that is forwarded as it is"));
    Value message = coded(own);
    if (send.publish) write(sender, sender.rank, send.src, message);
    message.received = true;
    if (recv.op == Op::recv_reduce) message = sum(receiver, read(receiver, receiver.rank, recv.src), message);
    write(receiver, receiver.rank, recv.dst, std::move(message));
  }

  void run_local(const Node& node) {
    const Step& step = *node.step;
    if (step.op == Op::store_to) {
      const Value value = read(node, node.rank, step.src);
      for (int peer : step.peers) write(node, peer, step.dst, value);
    } else {
      std::vector<Value> operands;
      if (step.op == Op::copy) operands = {read(node, node.rank, step.src)};
      for (Buffer source : step.sources) operands.push_back(read(node, node.rank, source));
      for (int peer : step.peers) operands.push_back(read(node, peer, step.src));
      write(node, node.rank, step.dst, sum_of_all(node, operands));
    }
  }

  Value sum_of_all(const Node& node, std::span<const Value> operands) const {
    if (operands.size() == 1) return operands[0];
    const std::size_t left = node.step->pairwise ? operands.size() / 2 : operands.size() - 1;
    return sum(node, sum_of_all(node, operands.first(left)), sum_of_all(node, operands.subspan(left)));
  }

  // In a reducing collective the input is read while it holds the caller's data, and other buffers when they
  // do not: in place both names lead to one place.
  Value read(const Node& node, int rank, Buffer buffer) const {
    const Value* value = held(rank, buffer, node.step->chunk);
    const auto refuse = [&](const std::string& why) {
      throw Flaw(text(where(node), " reads ", to_text(buffer), " of rank ", rank, ", which ", why));
    };
    if (!value) refuse("holds nothing there yet");
    if (value->chunk != node.step->chunk) refuse(text("holds chunk ", value->chunk));
    if (reduces_ && buffer == kInput && !value->contribution)
      refuse("was overwritten, in place, by the output");
    if (buffer != kInput && value->contribution) refuse("in place still holds the input");
    Value copy = *value;
    copy.contribution = false;
    return order_ != Order::any && value->contribution ? coded(copy) : copy;
  }

  void write(const Node& node, int rank, Buffer buffer, Value value) {
    if (node.step->final) {
      if (value.final) throw Flaw(text(where(node), " makes final what is final already"));
      if (!complete(value))
        throw Flaw(text(where(node), " makes final a sum of ranks ", ranks_of(value), " only"));
      if (order_ != Order::any && value.sum != wanted_sum(value.chunk))
        throw Flaw(text(where(node), " makes final a sum in another order than '", name_of(order_), "'"));
      value = {.chunk = value.chunk,
               .ranks = std::move(value.ranks),
               .exact = expression(kScaled, value.exact),
               .bits = expression(kScaled, value.bits),
               .final = true};
      if (order_ != Order::any) value = coded(std::move(value));
    } else if (rounds_once_ && !value.final && std::count(value.ranks.begin(), value.ranks.end(), true) > 1) {
      throw Flaw(text(where(node), " keeps the partial sum of ranks ", ranks_of(value), ", which rounds it"));
    }
    hold(rank, buffer, std::move(value));
  }

  Value sum(const Node& node, const Value& a, const Value& b) const {
    if (a.final || b.final) throw Flaw(text(where(node), " adds to a result that is final"));
    Value out{.chunk = a.chunk,
              .ranks = a.ranks,
              .exact = expression(kSum, a.exact, b.exact),
              .bits = expression(kSum, a.bits, b.bits),
              .sum = swappable_sum(a.sum, b.sum)};
    for (std::size_t rank = 0; rank < b.ranks.size(); ++rank) {
      if (a.ranks[rank] && b.ranks[rank])
        throw Flaw(text(where(node), " adds the contribution of rank ", rank, " twice"));
      out.ranks[rank] = a.ranks[rank] || b.ranks[rank];
    }
    return out;
  }

  std::uint64_t wanted_sum(int chunk) {
    const auto [found, is_new] = wanted_sums_.try_emplace(chunk);
    if (is_new) found->second = ordered_sum(order_, chunk, 0, static_cast<int>(memory_.size()));
    return found->second;
  }

  void hold(int rank, Buffer buffer, Value value) {
    const int place = places_.of(buffer, value.chunk);
    memory_[rank][place] = std::make_shared<const Value>(std::move(value));
  }

  const bool reduces_;
  const Order order_;
  const bool rounds_once_;
  const Places places_;
  std::unordered_map<int, std::uint64_t> wanted_sums_;                         // by chunk
  std::vector<std::unordered_map<int, std::shared_ptr<const Value>>> memory_;  // by rank, by place
};

constexpr int kAll = -1;  // instead of a rank

// Compares the ranks' outputs with what they must hold in the end.
class Result {
 public:
  Result(Collective collective, const Run& run, bool lossy)
      : collective_(collective), run_(run), lossy_(lossy) {}

  // The data of rank `source`, or with kAll the sum of all ranks.
  void expect(int rank, int chunk, int source) {
    const auto refuse = [&](const std::string& why) {
      throw Flaw(text("rank ", rank, " ends with chunk ", chunk, " of output ", why));
    };
    const Value* value = run_.held(rank, kOutput, chunk);
    if (!value) refuse("unwritten");
    if (!(source == kAll ? complete(*value) : is_of_one(*value, source)))
      refuse(text("holding data of ranks ", ranks_of(*value), ", expected ",
                  source == kAll ? "all" : text("{", source, "}")));
    if (reduces(collective_) && !value->final) refuse("made final by no step");
    const auto& [first_rank, first] = first_.try_emplace(chunk, rank, value).first->second;
    if (value->exact != first->exact) refuse(text("added in another order than on rank ", first_rank));
    if (lossy_ && value->bits != first->bits)
      refuse(text("with other bits than rank ", first_rank,
                  " under a lossy codec: a send whose value is kept is not published"));
  }

 private:
  const Collective collective_;
  const Run& run_;
  const bool lossy_;
  std::unordered_map<int, std::pair<int, const Value*>> first_;  // by chunk: the first rank that has it
};

// The one rank besides `root` that has steps.
int other_end(int root, const std::vector<Plan>& plans) {
  int found = -1;
  for (int rank = 0; rank < static_cast<int>(plans.size()); ++rank) {
    if (rank == root || plans[rank].stages.empty()) continue;
    if (found >= 0) throw Flaw(text("ranks ", found, " and ", rank, " both have steps with rank ", root));
    found = rank;
  }
  if (found < 0) throw Flaw(text("no rank has steps with rank ", root));
  return found;
}

// Who gives data to a collective, and who gets which.
class Task {
 public:
  Task(Collective collective, int root, const std::vector<Plan>& plans)
      : collective_(collective), size_(static_cast<int>(plans.size())), root_(root) {
    if (is_pair()) other_ = other_end(root, plans);
  }

  bool gives(int rank, int chunk) const {
    if (is_pair()) return rank == (collective_ == Collective::send ? other_ : root_);
    if (collective_ == Collective::broadcast) return rank == root_;
    return has_chunk({collective_, rank, size_, root_}, kInput, chunk);
  }
  bool gets(int rank, int chunk) const {
    if (is_pair()) return rank == (collective_ == Collective::send ? root_ : other_);
    return has_chunk({collective_, rank, size_, root_}, kOutput, chunk);
  }
  // The rank whose data the result is; kAll for the sum of all.
  int origin(int chunk) const {
    if (reduces(collective_)) return kAll;
    if (collective_ == Collective::send) return other_;
    if (collective_ == Collective::all_to_all) return chunk / size_;
    return collective_ == Collective::all_gather || collective_ == Collective::gather ? chunk : root_;
  }

 private:
  bool is_pair() const { return collective_ == Collective::send || collective_ == Collective::recv; }

  const Collective collective_;
  const int size_, root_;
  int other_ = kAll;  // of a pair, who is not the root
};

// Runs the values of a collective that moves any, and compares the results.
void check_values(Collective collective, int root, const std::vector<Plan>& plans, const Schedule& schedule,
                  const VerifyOptions& options) {
  const int size = static_cast<int>(plans.size()), chunks = plans[0].chunks;
  const Task task(collective, root, plans);
  Run run(collective, size, chunks, options);
  Result result(collective, run, options.lossy_codecs);
  for (int rank = 0; rank < size; ++rank)
    for (int chunk = 0; chunk < chunks; ++chunk)
      if (task.gives(rank, chunk)) run.provide(rank, chunk);
  run.run(schedule);
  for (int rank = 0; rank < size; ++rank)
    for (int chunk = 0; chunk < chunks; ++chunk)
      if (task.gets(rank, chunk)) result.expect(rank, chunk, task.origin(chunk));
}

std::string name_of_run(const Algorithm& algorithm, const Spec& spec, bool in_place) {
  std::string nodes;
  for (int node : spec.node_of) nodes += text(nodes.empty() ? " on nodes " : ",", node);
  return text(algorithm.name, " of ", spec.size, " ranks", nodes, ", root ", spec.root,
              spec.order == Order::any ? "" : text(", order ", name_of(spec.order)),
              in_place ? ", in place: " : ": ");
}

// Every rank's plan, whatever the spec's rank; for send and recv, those of a pair.
std::vector<Plan> plans_of(const Algorithm& algorithm, const Spec& spec, int other) {
  const auto& [collective, own, size, root, order, node_of] = spec;
  std::vector<Plan> plans(size);
  if (collective == Collective::send || collective == Collective::recv) {
    const bool sends = collective == Collective::send;
    const Collective reverse = sends ? Collective::recv : Collective::send;
    const Algorithm& match = algorithm_named(reverse, short_name(algorithm));
    plans[other] = algorithm.plan({collective, other, size, root, order, node_of});
    plans[root] = match.plan({reverse, root, size, other, order, node_of});
  } else {
    for (int rank = 0; rank < size; ++rank)
      plans[rank] = algorithm.plan({collective, rank, size, root, order, node_of});
  }
  return plans;
}

}  // namespace

std::string verify(Collective collective, int root, const std::vector<Plan>& plans,
                   const VerifyOptions& options) try {
  const int size = static_cast<int>(plans.size());
  PYCOMM_CHECK(root >= 0 && root < size, "root ", root, " of ", size, " plans");
  VerifyOptions actual = options;
  if (collective == Collective::broadcast) actual.in_place = true;
  if (collective == Collective::all_to_all) actual.in_place = false;
  check_steps(collective, root, plans);
  if (!actual.node_of.empty()) check_reach(plans, actual.node_of);
  const Schedule order = schedule(plans, actual.in_place);
  check_races(plans, order, actual.in_place);
  if (collective == Collective::barrier) {
    check_knowledge(size, order);
  } else {
    check_values(collective, root, plans, order, actual);
  }
  if (actual.volume >= 0) check_volume(collective, plans, actual.volume);
  if (actual.volume_of_node >= 0) check_volume_of_node(plans, actual.node_of, actual.volume_of_node);
  return "";
} catch (const Flaw& flaw) {
  return flaw.what();
}

namespace {

std::string flaw_of(const Algorithm& algorithm, const Spec& spec, int other) {
  const std::vector<Plan> plans = plans_of(algorithm, spec, other);
  VerifyOptions options{.lossy_codecs = algorithm.lossy_codecs,
                        .order = spec.order,
                        .rounds_once = algorithm.rounds_once,
                        .node_of = spec.node_of};
  if (spec.node_of.empty()) {
    options.volume = algorithm.volume(spec.size);
  } else if (algorithm.volume_of_node) {
    options.volume_of_node = algorithm.volume_of_node(spec);
  }
  for (bool in_place : {false, true}) {
    if (spec.collective == (in_place ? Collective::all_to_all : Collective::broadcast)) continue;
    options.in_place = in_place;
    const std::string flaw = verify(spec.collective, spec.root, plans, options);
    if (!flaw.empty()) return name_of_run(algorithm, spec, in_place) + flaw;
  }
  return "";
}

}  // namespace

std::string verify(const Algorithm& algorithm, int size, const std::vector<int>& node_of) {
  PYCOMM_CHECK(size > 0 && (!algorithm.supports || algorithm.supports(size)), algorithm.name,
               " does not support ", size, " ranks");
  const Collective collective = collective_of(algorithm);
  const bool rooted =
      has_root(collective) || collective == Collective::send || collective == Collective::recv;
  const int cases = rooted ? std::min(size, 8) : 1;
  for (int i = 0; i < cases; ++i) {
    const int root = i * size / cases;
    const int other = size == 1 ? root : (root + 1 + i % (size - 1)) % size;
    for (Order order : {Order::any, Order::rank, Order::tree}) {
      if (!exists(order, size) || !keeps(algorithm, order, false)) continue;
      std::string flaw = flaw_of(algorithm, {collective, 0, size, root, order, node_of}, other);
      if (!flaw.empty()) return flaw;
    }
  }
  return "";
}

}  // namespace pycomm
