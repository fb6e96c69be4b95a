// Hierarchical: ranks of one node add up in memory and share the result there, and only sums of whole nodes
// travel between nodes (Cho, Finkler, Serrano, Kung and Hunter, "BlueConnect: Decomposing all-reduce for deep
// learning on heterogeneous network hierarchy", 2019). Each rank of a node takes a part of the vector across,
// so that all of them drive the network at once, and a node sends as little as one rank alone would.
//
//   lane      chunks that pass through one rank of each node, its *carrier* there. Every lane goes through
//             all nodes, and has at most one chunk that ends at each.
//
// Between nodes a lane is a ring, or goes directly: few rounds, and sums of nodes are added in one go, which
// rounds 16-bit data and wires once more, not once for each node. Nodes of one rank leave the plain ring (or
// direct), one node alone what `mapped` does.
#include <algorithm>

#include "algorithm/nodes.h"
#include "algorithm/ranks.h"
#include "algorithm/volume.h"

namespace pycomm {
namespace {

struct Lane {
  std::vector<int> carriers;  // by node
  std::vector<int> chunks;    // by node: the chunk that ends there; -1: none
};

// For a vector that is cut as it suits: in every lane a chunk for every node.
std::vector<Lane> lanes_of_vector(const Nodes& nodes) {
  std::vector<Lane> lanes(even_lanes(nodes));
  for (int lane = 0; lane < std::ssize(lanes); ++lane)
    for (int node = 0; node < nodes.count(); ++node) {
      lanes[lane].carriers.push_back(nodes.carrier(lane, node));
      lanes[lane].chunks.push_back(lane * nodes.count() + node);
    }
  return lanes;
}

// For a vector in a part per rank: lane i has the parts of the i-th rank of each node.
std::vector<Lane> lanes_of_parts(const Nodes& nodes) {
  std::vector<Lane> lanes(nodes.largest());
  for (int lane = 0; lane < std::ssize(lanes); ++lane)
    for (int node = 0; node < nodes.count(); ++node) {
      lanes[lane].carriers.push_back(nodes.carrier(lane, node));
      lanes[lane].chunks.push_back(lane < nodes.size(node) ? nodes.members[node][lane] : -1);
    }
  return lanes;
}

// The plan of one rank, appended to step by step. A meet among the ranks of a node comes first and last:
// between the two they reach each other's memory.
class Builder {
 public:
  Builder(const Spec& spec, const Nodes& nodes, const std::vector<Lane>& lanes)
      : spec_(spec),
        count_(nodes.count()),
        node_(Nodes::of(spec, spec.rank)),
        members_(nodes.members[node_]),
        neighbours_(Nodes::neighbours(spec)) {
    for (const Lane& lane : lanes)
      if (lane.carriers[node_] == spec.rank) carried_.push_back(lane);
  }
  virtual ~Builder() = default;

  Plan all_reduce(int chunks) {
    return between_meetings(chunks, [&] {
      add_up_between();
      share_between();
      store_results();
    });
  }
  Plan reduce_scatter(int chunks) {
    return between_meetings(chunks, [&] { add_up_between(); });
  }
  Plan all_gather(int chunks) {
    return between_meetings(chunks, [&] {
      const Step keep = copy(spec_.rank, kInput, kOutput);
      if (count_ == 1) {
        plan_.add_stage().steps = {store_to(neighbours_, spec_.rank, kInput, kOutput)};
        plan_.add_stage().steps = {keep};
        return;
      }
      plan_.add_stage().steps = {keep};
      share_between();
      store_results();
    });
  }

 protected:
  virtual void add_up_between() = 0;  // leaves the sums of chunks that end here in output
  virtual void share_between() = 0;   // takes them from there
  // Where carried lane i adds up its chunk for another node, when output has no room for that.
  virtual Buffer slot_of_sum(int i, int node) const = 0;

  bool alone() const { return neighbours_.empty(); }
  bool sums_in_output() const { return spec_.collective == Collective::all_reduce; }
  int node_at(int distance) const { return wrap(node_ + distance, count_); }

  Buffer sum(int i, int node) const {
    return sums_in_output() || node == node_ ? kOutput : slot_of_sum(i, node);
  }
  // This node's contribution to a chunk, once add_up() was there.
  Buffer contribution(int i, int node) const { return alone() ? kInput : sum(i, node); }

  void add_up(int node) {
    if (alone()) return;
    Stage stage;
    for (int i = 0; i < std::ssize(carried_); ++i) {
      if (carried_[i].chunks[node] < 0) continue;
      const Step add = reduce_from(members_, carried_[i].chunks[node], kInput, sum(i, node));
      stage.steps.push_back(count_ == 1 ? as_final(add) : add);
    }
    append(std::move(stage));
  }

  void append(Stage stage) {
    if (!stage.steps.empty()) plan_.stages.push_back(std::move(stage));
  }

  const Spec& spec_;
  const int count_, node_;  // of nodes; ours
  const std::vector<int>& members_;
  const std::vector<int> neighbours_;  // members but ourselves
  std::vector<Lane> carried_;          // the lanes that pass through this rank
  Plan plan_;

 private:
  template <class Work>
  Plan between_meetings(int chunks, const Work& work) {
    plan_.chunks = chunks;
    if (!alone()) plan_.add_stage().steps = {meet(neighbours_)};
    work();
    if (!alone()) plan_.add_stage().steps = {meet(neighbours_)};
    return std::move(plan_);
  }

  void store_results() {
    Stage stage;
    for (int distance = 0; distance > -count_ && !alone(); --distance)
      for (const Lane& lane : carried_)
        if (const int chunk = lane.chunks[node_at(distance)]; chunk >= 0)
          stage.steps.push_back(store_to(neighbours_, chunk, kOutput, kOutput));
    append(std::move(stage));
  }
};

// As in ring.cc, with nodes for ranks.
class RingBuilder final : public Builder {
 public:
  using Builder::Builder;

 private:
  void add_up_between() override {
    add_up(node_at(-1));
    for (int s = 0; s < count_ - 1; ++s) {
      const int leaves = node_at(-1 - s), comes = node_at(-2 - s);
      add_up(comes);
      Stage stage;
      for (int i = 0; i < std::ssize(carried_); ++i) {
        const Lane& lane = carried_[i];
        if (const int chunk = lane.chunks[leaves]; chunk >= 0)
          stage.steps.push_back(
              send(lane.carriers[node_at(1)], chunk, s == 0 ? contribution(i, leaves) : sum(i, leaves)));
        if (const int chunk = lane.chunks[comes]; chunk >= 0) {
          const Step add =
              recv_reduce(lane.carriers[node_at(-1)], chunk, contribution(i, comes), sum(i, comes));
          stage.steps.push_back(s == count_ - 2 ? as_final(add) : add);
        }
      }
      append(std::move(stage));
    }
  }

  void share_between() override {
    for (int s = 0; s < count_ - 1; ++s) {
      Stage stage;
      for (const Lane& lane : carried_) {
        if (const int chunk = lane.chunks[node_at(-s)]; chunk >= 0) {
          const Step pass = send(lane.carriers[node_at(1)], chunk, kOutput);
          stage.steps.push_back(s == 0 ? published(pass) : pass);
        }
        if (const int chunk = lane.chunks[node_at(-1 - s)]; chunk >= 0)
          stage.steps.push_back(recv(lane.carriers[node_at(-1)], chunk, kOutput));
      }
      append(std::move(stage));
    }
  }

  // Two slots in turn: one leaves while the next fills.
  Buffer slot_of_sum(int i, int node) const override {
    return scratch(2 * i + (wrap(node_ - 1 - node, count_) + 1) % 2);
  }
};

// As in direct.cc, with nodes for ranks.
class DirectBuilder final : public Builder {
 public:
  using Builder::Builder;

 private:
  void add_up_between() override {
    for (int distance = 1; distance < count_; ++distance) add_up(node_at(distance));
    Stage swap, total;
    for (int distance = 1; distance < count_; ++distance) {
      const int to = node_at(distance), from = node_at(-distance);
      for (int i = 0; i < std::ssize(carried_); ++i) {
        const Lane& lane = carried_[i];
        if (lane.chunks[to] >= 0)
          swap.steps.push_back(send(lane.carriers[to], lane.chunks[to], contribution(i, to)));
        if (lane.chunks[node_] >= 0)
          swap.steps.push_back(recv(lane.carriers[from], lane.chunks[node_], slot_of_arrival(i, from)));
      }
    }
    append(std::move(swap));
    add_up(node_);
    for (int i = 0; i < std::ssize(carried_) && count_ > 1; ++i)
      if (const int chunk = carried_[i].chunks[node_]; chunk >= 0)
        total.steps.push_back(as_final(reduce(chunk, kOutput, contributions(i))));
    append(std::move(total));
  }

  void share_between() override {
    Stage swap;
    for (int distance = 1; distance < count_; ++distance) {
      const int to = node_at(distance), from = node_at(-distance);
      for (const Lane& lane : carried_) {
        if (lane.chunks[node_] >= 0)
          swap.steps.push_back(published(send(lane.carriers[to], lane.chunks[node_], kOutput)));
        if (lane.chunks[from] >= 0)
          swap.steps.push_back(recv(lane.carriers[from], lane.chunks[from], kOutput));
      }
    }
    append(std::move(swap));
  }

  std::vector<Buffer> contributions(int i) const {
    std::vector<Buffer> all;
    for (int node = 0; node < count_; ++node)
      all.push_back(node == node_ ? contribution(i, node) : slot_of_arrival(i, node));
    return all;
  }

  int number_of(int i, int node) const { return i * (count_ - 1) + (node < node_ ? node : node - 1); }
  Buffer slot_of_arrival(int i, int node) const { return scratch(number_of(i, node)); }
  Buffer slot_of_sum(int i, int node) const override {
    return scratch(static_cast<int>(std::ssize(carried_)) * (count_ - 1) + number_of(i, node));
  }
};

template <class Between>
Plan all_reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const Nodes nodes(spec);
  const auto lanes = lanes_of_vector(nodes);
  return Between(spec, nodes, lanes).all_reduce(static_cast<int>(std::ssize(lanes)) * nodes.count());
}

template <class Between>
Plan reduce_scatter(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const Nodes nodes(spec);
  return Between(spec, nodes, lanes_of_parts(nodes)).reduce_scatter(spec.size);
}

template <class Between>
Plan all_gather(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const Nodes nodes(spec);
  return Between(spec, nodes, lanes_of_parts(nodes)).all_gather(spec.size);
}

// --- what the busiest node sends to others ---------------------------------

double two_passes_of_nodes(const Spec& spec) {
  return two_passes(Nodes(spec).count());
}

// All parts but those of the smallest node.
double one_pass_of_nodes(const Spec& spec) {
  const Nodes nodes(spec);
  int least = spec.size;
  for (int node = 0; node < nodes.count(); ++node) least = std::min(least, nodes.size(node));
  return double(spec.size - least) / spec.size;
}

// The parts of the largest node, to each other one.
double own_parts_to_nodes(const Spec& spec) {
  const Nodes nodes(spec);
  return double(nodes.largest()) * (nodes.count() - 1) / spec.size;
}

const Register<Algorithm> kAllReduce(
    {.name = "all_reduce:hierarchical",
     .summary = "sums of nodes travel round rings, one for each rank of a node; long vectors",
     .plan = all_reduce<RingBuilder>,
     .volume = two_passes,
     .volume_of_node = two_passes_of_nodes});
const Register<Algorithm> kAllReduceDirect(
    {.name = "all_reduce:hierarchical_direct",
     .summary = "sums of nodes straight to their owners and back; 16-bit wires, short vectors",
     .plan = all_reduce<DirectBuilder>,
     .volume = two_passes,
     .volume_of_node = two_passes_of_nodes});
const Register<Algorithm> kReduceScatter(
    {.name = "reduce_scatter:hierarchical",
     .summary = "sums of nodes travel round rings, one for each rank of a node",
     .plan = reduce_scatter<RingBuilder>,
     .volume = one_pass,
     .volume_of_node = one_pass_of_nodes});
const Register<Algorithm> kReduceScatterDirect({.name = "reduce_scatter:hierarchical_direct",
                                                .summary = "sums of nodes straight to their owners",
                                                .plan = reduce_scatter<DirectBuilder>,
                                                .volume = one_pass,
                                                .volume_of_node = one_pass_of_nodes});
const Register<Algorithm> kAllGather(
    {.name = "all_gather:hierarchical",
     .summary = "chunks go to a rank of each node, round rings, and are shared there",
     .plan = all_gather<RingBuilder>,
     .volume = one_pass,
     .volume_of_node = one_pass_of_nodes});
const Register<Algorithm> kAllGatherDirect(
    {.name = "all_gather:hierarchical_direct",
     .summary = "chunks go straight to a rank of each node, and are shared there",
     .plan = all_gather<DirectBuilder>,
     .volume = one_pass,
     .volume_of_node = own_parts_to_nodes});

}  // namespace
}  // namespace pycomm
