#include "plan/verify.h"

#include <algorithm>
#include <cmath>
#include <memory>
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

std::string ranks_of(const Value& value) {
  std::string out;
  for (std::size_t rank = 0; rank < value.ranks.size(); ++rank)
    if (value.ranks[rank]) out += text(out.empty() ? "" : ", ", rank);
  return "{" + out + "}";
}

// What all places of all ranks hold while the steps run.
class Run {
 public:
  Run(Collective collective, int size, int chunks, bool in_place)
      : reduces_(reduces(collective)), places_{chunks, in_place}, memory_(size) {}

  // The caller's data in chunk `chunk` of rank `rank`'s input.
  void provide(int rank, int chunk) {
    Value value{.chunk = chunk, .ranks = std::vector<bool>(memory_.size()), .contribution = reduces_};
    value.ranks[rank] = true;
    value.exact = value.bits = expression(kLeaf, rank, chunk);
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
      Value value = operands[0];
      for (std::size_t i = 1; i < operands.size(); ++i) value = sum(node, value, operands[i]);
      write(node, node.rank, step.dst, std::move(value));
    }
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
    return copy;
  }

  void write(const Node& node, int rank, Buffer buffer, Value value) {
    if (node.step->final) {
      if (value.final) throw Flaw(text(where(node), " makes final what is final already"));
      if (!complete(value))
        throw Flaw(text(where(node), " makes final a sum of ranks ", ranks_of(value), " only"));
      value = {.chunk = value.chunk,
               .ranks = std::move(value.ranks),
               .exact = expression(kScaled, value.exact),
               .bits = expression(kScaled, value.bits),
               .final = true};
    }
    hold(rank, buffer, std::move(value));
  }

  Value sum(const Node& node, const Value& a, const Value& b) const {
    if (a.final || b.final) throw Flaw(text(where(node), " adds to a result that is final"));
    Value out{.chunk = a.chunk,
              .ranks = a.ranks,
              .exact = expression(kSum, a.exact, b.exact),
              .bits = expression(kSum, a.bits, b.bits)};
    for (std::size_t rank = 0; rank < b.ranks.size(); ++rank) {
      if (a.ranks[rank] && b.ranks[rank])
        throw Flaw(text(where(node), " adds the contribution of rank ", rank, " twice"));
      out.ranks[rank] = a.ranks[rank] || b.ranks[rank];
    }
    return out;
  }

  void hold(int rank, Buffer buffer, Value value) {
    const int place = places_.of(buffer, value.chunk);
    memory_[rank][place] = std::make_shared<const Value>(std::move(value));
  }

  const bool reduces_;
  const Places places_;
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
  Run run(collective, size, chunks, options.in_place);
  Result result(collective, run, options.lossy_codecs);
  for (int rank = 0; rank < size; ++rank)
    for (int chunk = 0; chunk < chunks; ++chunk)
      if (task.gives(rank, chunk)) run.provide(rank, chunk);
  run.run(schedule);
  for (int rank = 0; rank < size; ++rank)
    for (int chunk = 0; chunk < chunks; ++chunk)
      if (task.gets(rank, chunk)) result.expect(rank, chunk, task.origin(chunk));
}

std::string name_of_run(const Algorithm& algorithm, int size, int root, const std::vector<int>& node_of,
                        bool in_place) {
  std::string nodes;
  for (int node : node_of) nodes += text(nodes.empty() ? " on nodes " : ",", node);
  return text(algorithm.name, " of ", size, " ranks", nodes, ", root ", root,
              in_place ? ", in place: " : ": ");
}

// Every rank's plan; for send and recv, those of a pair.
std::vector<Plan> plans_of(const Algorithm& algorithm, int size, int root, int other,
                           const std::vector<int>& node_of) {
  const Collective collective = collective_of(algorithm);
  std::vector<Plan> plans(size);
  if (collective == Collective::send || collective == Collective::recv) {
    const bool sends = collective == Collective::send;
    const Collective reverse = sends ? Collective::recv : Collective::send;
    const Algorithm& match = algorithm_named(reverse, short_name(algorithm));
    plans[other] = algorithm.plan({collective, other, size, root, node_of});
    plans[root] = match.plan({reverse, root, size, other, node_of});
  } else {
    for (int rank = 0; rank < size; ++rank)
      plans[rank] = algorithm.plan({collective, rank, size, root, node_of});
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
    const std::vector<Plan> plans = plans_of(algorithm, size, root, other, node_of);
    VerifyOptions options{.lossy_codecs = algorithm.lossy_codecs, .node_of = node_of};
    if (node_of.empty()) {
      options.volume = algorithm.volume(size);
    } else if (algorithm.volume_of_node) {
      options.volume_of_node = algorithm.volume_of_node({collective, 0, size, root, node_of});
    }
    for (bool in_place : {false, true}) {
      if (in_place ? collective == Collective::all_to_all : collective == Collective::broadcast) continue;
      options.in_place = in_place;
      const std::string flaw = verify(collective, root, plans, options);
      if (!flaw.empty()) return name_of_run(algorithm, size, root, node_of, in_place) + flaw;
    }
  }
  return "";
}

}  // namespace pycomm
