#include "plan/check.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "plan/text.h"

namespace pycomm {
namespace {

class StepCheck {
 public:
  StepCheck(const Spec& spec, int chunks, const Node& node)
      : spec_(spec), chunks_(chunks), node_(node), step_(*node.step) {}

  void run() const {
    require(step_.chunk >= 0 && step_.chunk < chunks_, "there are ", chunks_, " chunks");
    check_peers();
    check_buffers();
    check_marks();
  }

 private:
  template <class... Rule>
  void require(bool condition, const Rule&... rule) const {
    if (!condition) throw Flaw(text(where(node_), ": ", rule...));
  }

  void check_peers() const {
    const std::vector<int>& peers = step_.peers;
    const bool has_message = step_.op == Op::send || step_.op == Op::recv || step_.op == Op::recv_reduce;
    if (has_message) require(peers.size() == 1, "a message has one peer");
    if (step_.op == Op::copy || step_.op == Op::reduce) require(peers.empty(), "a local step has no peers");
    for (int peer : peers) {
      require(peer >= 0 && peer < spec_.size, "peer ", peer, " of ", spec_.size, " ranks");
      require(std::count(peers.begin(), peers.end(), peer) == 1, "peer ", peer, " is listed twice");
    }
    const bool lists_itself = std::count(peers.begin(), peers.end(), node_.rank) > 0;
    if (step_.op == Op::reduce_from) {
      require(lists_itself, "reduce_from includes the own rank");
      require(std::is_sorted(peers.begin(), peers.end()), "reduce_from reduces in order of rank");
    } else {
      require(!lists_itself, "a rank is no peer of its own");
    }
  }

  void check_buffers() const {
    if (step_.op == Op::meet) return;
    const bool writes = step_.op != Op::send, local_dst = writes && step_.op != Op::store_to;
    const bool remote = step_.op == Op::reduce_from || step_.op == Op::store_to;
    if (step_.op != Op::recv && step_.op != Op::reduce) require_place(step_.src, node_.rank);
    if (local_dst) require_place(step_.dst, node_.rank);
    if (writes) require(step_.dst != kInput, "the input is not written");
    if (remote) {
      const Buffer far = step_.op == Op::reduce_from ? step_.src : step_.dst;
      require(!is_scratch(far), "peers know only where input and output are");
      for (int peer : step_.peers) require_place(far, peer);
    }
    if (step_.op == Op::reduce) require(!step_.sources.empty(), "there is nothing to reduce");
    for (Buffer source : step_.sources) require_place(source, node_.rank);
  }

  void require_place(Buffer buffer, int rank) const {
    require(has_chunk({spec_.collective, rank, spec_.size, spec_.root}, buffer, step_.chunk), "in ",
            name_of(spec_.collective), " rank ", rank, " has no chunk ", step_.chunk, " of ",
            to_text(buffer));
  }

  void check_marks() const {
    const bool adds = step_.op == Op::recv_reduce || step_.op == Op::reduce || step_.op == Op::reduce_from;
    const std::string_view name = name_of(spec_.collective);
    if (adds) require(reduces(spec_.collective), name, " reduces nothing");
    if (step_.final) require(reduces(spec_.collective), "final in ", name);
    if (step_.final) require(adds || step_.op == Op::copy, "final belongs to a step that reduces or copies");
    if (step_.publish) require(step_.op == Op::send, "publish belongs to a send");
    if (step_.publish) require(step_.src != kInput, "publish would change the input");
  }

  const Spec& spec_;
  const int chunks_;
  const Node& node_;
  const Step& step_;
};

}  // namespace

void check_steps(Collective collective, int root, const std::vector<Plan>& plans) {
  const int size = static_cast<int>(plans.size());
  for (int rank = 0; rank < size; ++rank) {
    const Plan& plan = plans[rank];
    const Spec spec{collective, rank, size, root};
    const int expected = has_parts(collective) ? chunks_of_parts(collective, size) : plans[0].chunks;
    if (plan.chunks < 1 || plan.chunks != expected)
      throw Flaw(text("rank ", rank, " cuts the vector in ", plan.chunks, " chunks, expected ", expected));
    for (std::size_t stage = 0; stage < plan.stages.size(); ++stage)
      for (const Step& step : plan.stages[stage].steps)
        StepCheck(spec, plan.chunks, {rank, static_cast<int>(stage), 0, &step, {}}).run();
  }
}

namespace {

// One touch of a place between two meets.
struct Touch {
  int node;
  bool write;
  bool remote;
};

// What a rank meets.
struct Meets {
  int count = 0;
  std::vector<int> peers;
};

bool reaches_peers(const Step& step) {
  return step.op == Op::reduce_from || step.op == Op::store_to;
}

void check_between_meets(const Node& node, const Meets& meets) {
  if (node.epoch == 0) throw Flaw(text(where(node), " reaches peers before the first meet"));
  if (node.epoch == meets.count) throw Flaw(text(where(node), " reaches peers after the last meet"));
  for (int peer : node.step->peers)
    if (peer != node.rank && std::count(meets.peers.begin(), meets.peers.end(), peer) == 0)
      throw Flaw(text(where(node), " reaches rank ", peer, ", which it does not meet"));
}

// Whether a node waits for another one of its rank, by whatever others between. Nodes stand in plan order, so
// nothing before the earlier one leads there.
bool waits_for(const Schedule& schedule, int later, int earlier) {
  const std::vector<int>& awaited = schedule.nodes[later].after;
  return std::any_of(awaited.begin(), awaited.end(), [&](int node) {
    return node == earlier || (node > earlier && waits_for(schedule, node, earlier));
  });
}

// One rank's own places are in the order of its dependencies; what it reaches elsewhere is when one of the
// two steps waits for the other.
bool ordered(const Schedule& schedule, const Touch& first, const Touch& second) {
  if (schedule.nodes[first.node].rank != schedule.nodes[second.node].rank) return false;
  return !first.remote || waits_for(schedule, second.node, first.node);
}

}  // namespace

void check_races(const std::vector<Plan>& plans, const Schedule& schedule, bool in_place) {
  std::vector<Meets> meets(plans.size());
  for (const Node& node : schedule.nodes)
    if (node.step->op == Op::meet) meets[node.rank] = {meets[node.rank].count + 1, node.step->peers};

  const Places places{plans[0].chunks, in_place};
  std::map<std::array<int, 3>, std::vector<Touch>> touches;  // by rank, epoch, place
  for (int i = 0; i < static_cast<int>(schedule.nodes.size()); ++i) {
    const Node& node = schedule.nodes[i];
    const Step& step = *node.step;
    if (meets[node.rank].count == 0 && !reaches_peers(step)) continue;
    for (const Access& access : accesses(step, places))
      touches[{node.rank, node.epoch, access.place}].push_back({i, access.write, false});
    if (!reaches_peers(step)) continue;
    check_between_meets(node, meets[node.rank]);
    const bool stores = step.op == Op::store_to;
    const int place = places.of(stores ? step.dst : step.src, step.chunk);
    for (int peer : step.peers)
      if (peer != node.rank) touches[{peer, node.epoch, place}].push_back({i, stores, true});
  }
  for (const auto& [key, all] : touches)
    for (std::size_t i = 0; i < all.size(); ++i)
      for (std::size_t j = i + 1; j < all.size(); ++j)
        if ((all[i].write || all[j].write) && !ordered(schedule, all[i], all[j]))
          throw Flaw(text("race on rank ", key[0], ": ", where(schedule.nodes[all[i].node]), " and ",
                          where(schedule.nodes[all[j].node]),
                          " touch the same memory between the same meets"));
}

void check_reach(const std::vector<Plan>& plans, const std::vector<int>& node_of) {
  for (int rank = 0; rank < std::ssize(plans); ++rank)
    for (std::size_t stage = 0; stage < plans[rank].stages.size(); ++stage)
      for (const Step& step : plans[rank].stages[stage].steps) {
        if (!reaches_peers(step) && step.op != Op::meet) continue;
        for (int peer : step.peers)
          if (node_of[peer] != node_of[rank])
            throw Flaw(text(where({rank, static_cast<int>(stage), 0, &step, {}}), " reaches rank ", peer,
                            ", which is on another node"));
      }
}

void check_knowledge(int size, const Schedule& schedule) {
  using Ranks = std::vector<bool>;
  const auto learn = [](Ranks& to, const Ranks& from) {
    for (std::size_t rank = 0; rank < from.size(); ++rank) to[rank] = to[rank] || from[rank];
  };
  std::vector<Ranks> known(schedule.nodes.size(), Ranks(size)), in_the_end(size, Ranks(size));
  for (const std::vector<int>& event : schedule.events) {
    Ranks told(size);
    for (int node : event) {
      known[node][schedule.nodes[node].rank] = true;
      for (int earlier : schedule.nodes[node].after) learn(known[node], known[earlier]);
      if (schedule.nodes[node].step->op != Op::recv) learn(told, known[node]);
    }
    for (int node : event) {
      learn(known[node], told);
      learn(in_the_end[schedule.nodes[node].rank], known[node]);
    }
  }
  for (int rank = 0; rank < size; ++rank)
    for (int other = 0; other < size; ++other)
      if (other != rank && !in_the_end[rank][other])
        throw Flaw(text("rank ", rank, " leaves the barrier without knowing that rank ", other, " has come"));
}

namespace {

// Chunks that a step moves to or from other ranks by this rank's doing.
std::size_t moved(const Step& step) {
  if (step.op == Op::send) return 1;
  if (step.op == Op::store_to) return step.peers.size();
  return step.op == Op::reduce_from ? step.peers.size() - 1 : 0;
}

}  // namespace

void check_volume(Collective collective, const std::vector<Plan>& plans, double expected) {
  double busiest = 0;
  for (const Plan& plan : plans) {
    std::size_t chunks = 0;
    for (const Stage& stage : plan.stages)
      for (const Step& step : stage.steps) chunks += moved(step);
    busiest = std::max(busiest, double(chunks) / plan.chunks);
  }
  if (collective == Collective::barrier) busiest = 0;  // its messages are empty
  if (std::abs(busiest - expected) > 1e-9)
    throw Flaw(text("the busiest rank moves ", busiest, " of the vector, expected ", expected));
}

void check_volume_of_node(const std::vector<Plan>& plans, const std::vector<int>& node_of, double expected) {
  std::vector<double> sent(plans.size());  // by node
  for (std::size_t rank = 0; rank < plans.size(); ++rank)
    for (const Stage& stage : plans[rank].stages)
      for (const Step& step : stage.steps)
        if (step.op == Op::send && node_of[step.peers[0]] != node_of[rank])
          sent[node_of[rank]] += 1.0 / plans[rank].chunks;
  const double busiest = *std::max_element(sent.begin(), sent.end());
  if (std::abs(busiest - expected) > 1e-9)
    throw Flaw(text("the busiest node sends ", busiest, " of the vector, expected ", expected));
}

}  // namespace pycomm
