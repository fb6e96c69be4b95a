// Broadcast and reduce over nodes: every lane of the vector goes along a chain of nodes, through one rank of
// each, and ranks of one node pass it on in memory. A chain forwards segments as they come, so a long vector
// costs its length once, however many nodes there are (the pipelined chain of Pjesivac-Grbovic and others,
// "Performance analysis of MPI collective operations", 2007).
#include "algorithm/nodes.h"
#include "algorithm/ranks.h"
#include "algorithm/volume.h"

namespace pycomm {
namespace {

// One rank's place in the chains.
struct Chain {
  Chain(const Spec& spec, int first_node)
      : nodes(spec),
        node(Nodes::of(spec, spec.rank)),
        position(wrap(node - first_node, nodes.count())),
        neighbours(Nodes::neighbours(spec)),
        lanes(even_lanes(nodes)) {}

  bool alone() const { return neighbours.empty(); }
  bool is_first() const { return position == 0; }
  bool is_last() const { return position == nodes.count() - 1; }
  int carrier(int lane) const { return nodes.carrier(lane, node); }
  int previous(int lane) const { return nodes.carrier(lane, wrap(node - 1, nodes.count())); }
  int next(int lane) const { return nodes.carrier(lane, wrap(node + 1, nodes.count())); }
  std::vector<int> neighbours_but(int rank) const {
    std::vector<int> others = neighbours;
    std::erase(others, rank);
    return others;
  }

  const Nodes nodes;
  const int node, position;
  const std::vector<int> neighbours;
  const int lanes;
};

void append(Plan& plan, Stage stage) {
  if (!stage.steps.empty()) plan.stages.push_back(std::move(stage));
}

// At the root's node the root hands the lanes to their carriers first.
Plan broadcast(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const Chain chain(spec, Nodes::of(spec, spec.root));
  Plan plan{.chunks = chain.lanes};
  Stage hand, take, pass, share;
  for (int lane = 0; lane < chain.lanes; ++lane) {
    const int carrier = chain.carrier(lane);
    if (spec.rank == spec.root && carrier != spec.root)
      hand.steps.push_back(store_to({carrier}, lane, kOutput, kOutput));
    if (carrier != spec.rank) continue;
    if (!chain.is_first()) take.steps.push_back(recv(chain.previous(lane), lane, kOutput));
    if (!chain.is_last()) pass.steps.push_back(send(chain.next(lane), lane, kOutput));
    if (const auto others = chain.neighbours_but(spec.root); !others.empty())
      share.steps.push_back(store_to(others, lane, kOutput, kOutput));
  }
  const Stage meeting{.steps = {meet(chain.neighbours)}};
  if (!chain.alone()) plan.stages.push_back(meeting);
  append(plan, hand);
  if (!chain.alone() && chain.is_first()) plan.stages.push_back(meeting);
  append(plan, take);
  append(plan, pass);
  append(plan, share);
  if (!chain.alone()) plan.stages.push_back(meeting);
  return plan;
}

// The chains end at the root's node, where the carriers store the sums at the root.
Plan reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const Chain chain(spec, Nodes::of(spec, spec.root) + 1);
  Plan plan{.chunks = chain.lanes};
  Stage add, take, pass;
  int slots = 0;
  for (int lane = 0; lane < chain.lanes; ++lane) {
    if (chain.carrier(lane) != spec.rank) continue;
    const Buffer sum = spec.rank == spec.root ? kOutput : scratch(slots++);
    const Buffer contribution = chain.alone() ? kInput : sum;
    if (!chain.alone()) {
      const Step all = reduce_from(chain.nodes.members[chain.node], lane, kInput, sum);
      add.steps.push_back(chain.nodes.count() == 1 ? as_final(all) : all);
    }
    if (!chain.is_first()) {
      const Step arrival = recv_reduce(chain.previous(lane), lane, contribution, sum);
      take.steps.push_back(chain.is_last() ? as_final(arrival) : arrival);
    }
    if (!chain.is_last()) {
      pass.steps.push_back(send(chain.next(lane), lane, chain.is_first() ? contribution : sum));
    } else if (spec.rank != spec.root) {
      pass.steps.push_back(store_to({spec.root}, lane, sum, kOutput));
    }
  }
  const Stage meeting{.steps = {meet(chain.neighbours)}};
  if (!chain.alone()) plan.stages.push_back(meeting);
  append(plan, add);
  append(plan, take);
  append(plan, pass);
  if (!chain.alone()) plan.stages.push_back(meeting);
  return plan;
}

double vector_of_node(const Spec& spec) {
  return Nodes(spec).count() > 1;
}

const Register<Algorithm> kBroadcast(
    {.name = "broadcast:hierarchical",
     .summary = "along chains of nodes, one for each rank of a node, and shared there; long vectors",
     .plan = broadcast,
     .volume = one_vector,
     .volume_of_node = vector_of_node,
     .lossy_codecs = false});
const Register<Algorithm> kReduce(
    {.name = "reduce:hierarchical",
     .summary = "sums of nodes along chains of nodes, one for each rank of a node; long vectors",
     .plan = reduce,
     .volume = one_vector,
     .volume_of_node = vector_of_node});

}  // namespace
}  // namespace pycomm
