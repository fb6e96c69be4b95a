// Plans that follow nodes are right however the ranks lie on them.
#include <map>
#include <set>
#include <utility>

#include "check.h"
#include "layouts.h"
#include "plans.h"

using namespace pycomm;

namespace {

void check_followers(const NodeOf& node_of) {
  for (const Algorithm* algorithm : followers())
    if (!node_of.empty()) CHECK_EQ(verify(*algorithm, static_cast<int>(node_of.size()), node_of), "");
}

// What each pair of ranks on different nodes sends, in chunks.
std::map<std::pair<int, int>, int> links(const Plans& plans, const NodeOf& node_of) {
  std::map<std::pair<int, int>, int> sent;
  for (int rank = 0; rank < std::ssize(plans); ++rank)
    for (const Stage& stage : plans[rank].stages)
      for (const Step& step : stage.steps)
        if (step.op == Op::send && node_of[step.peers[0]] != node_of[rank]) ++sent[{rank, step.peers[0]}];
  return sent;
}

// And each rank.
std::map<int, int> sent_by_rank(const Plans& plans, const NodeOf& node_of) {
  std::map<int, int> sent;
  for (const auto& [pair, chunks] : links(plans, node_of)) sent[pair.first] += chunks;
  return sent;
}

bool has(const Plans& plans, Op op) {
  for (const Plan& plan : plans)
    for (const Stage& stage : plan.stages)
      for (const Step& step : stage.steps)
        if (step.op == op) return true;
  return false;
}

}  // namespace

TEST(plans_that_follow_nodes_are_right_on_1_to_4_nodes_of_1_to_4_ranks) {
  for (const auto& sizes : node_sizes(1, 4)) check_followers(node_by_node(sizes));
}

TEST(plans_that_follow_nodes_are_right_when_ranks_are_dealt_to_nodes) {
  for (const auto& sizes : node_sizes(2, 3)) check_followers(dealt(sizes));
}

TEST(plans_that_follow_nodes_are_right_on_any_layout_of_1_to_33_ranks) {
  std::mt19937 random(1);
  for (int size = 1; size <= 33; ++size)
    for (int repeat = 0; repeat < 2; ++repeat) check_followers(any_layout(random, size));
}

TEST(plans_that_follow_nodes_are_right_on_16_nodes_of_8_ranks) {
  check_followers(node_by_node(std::vector<int>(16, 8)));
}

TEST(an_algorithm_follows_nodes_for_every_collective_that_moves_long_vectors) {
  std::set<std::string> names;
  for (const Algorithm* algorithm : followers()) names.insert(algorithm->name);
  for (const char* collective : {"all_reduce", "reduce_scatter", "all_gather"})
    for (const char* name : {":hierarchical", ":hierarchical_direct"})
      CHECK(names.contains(std::string(collective) + name));
}

TEST(nodes_of_one_rank_leave_the_plain_ring_and_the_plain_direct) {
  for (Collective collective : {Collective::all_reduce, Collective::reduce_scatter, Collective::all_gather})
    for (int size : {2, 3, 5, 8}) {
      CHECK(plans_of(collective, "hierarchical", size) == plans_of(collective, "ring", size));
      CHECK(!has(plans_of(collective, "hierarchical_direct", size), Op::meet));
    }
}

TEST(one_node_alone_does_what_mapped_does) {
  const NodeOf one(5, 0);
  for (Collective collective : {Collective::all_reduce, Collective::reduce_scatter, Collective::all_gather})
    for (const char* name : {"hierarchical", "hierarchical_direct"})
      CHECK(plans_of(collective, name, 5, 0, Order::any, one) == plans_of(collective, "mapped", 5));
}

TEST(every_rank_of_equal_nodes_takes_an_equal_share_across) {
  for (const char* name : {"hierarchical", "hierarchical_direct"}) {
    const NodeOf node_of = node_by_node({4, 4, 4});
    const Plans plans = plans_of(Collective::all_reduce, name, 12, 0, Order::any, node_of);
    for (const auto& [rank, chunks] : sent_by_rank(plans, node_of)) CHECK_EQ(chunks, 4);  // of 12
    CHECK_EQ(sent_by_rank(plans, node_of).size(), 12U);
  }
}

// Lanes are the least common multiple of the nodes' sizes where four for each rank suffice for that.
TEST(every_rank_and_every_link_of_uneven_nodes_carries_an_equal_share) {
  const NodeOf node_of = node_by_node({2, 3});
  const Plans plans = plans_of(Collective::all_reduce, "hierarchical", 5, 0, Order::any, node_of);
  CHECK_EQ(plans[0].chunks, 12);
  for (const auto& [link, chunks] : links(plans, node_of)) CHECK_EQ(chunks, 2);
  for (const auto& [rank, chunks] : sent_by_rank(plans, node_of)) CHECK_EQ(chunks, rank < 2 ? 6 : 4);
}

TEST(memory_of_another_node_is_out_of_reach) {
  const NodeOf node_of = node_by_node({2, 2});
  for (const char* name : {"hierarchical", "hierarchical_direct"}) {
    const Plans plans = plans_of(Collective::all_reduce, name, 4, 0, Order::any, node_of);
    CHECK_EQ(verify(Collective::all_reduce, 0, plans, {.node_of = node_of}), "");
    CHECK_FLAW(Collective::all_reduce, plans, "'meet 1' reaches rank 1, which is on another node",
               {.node_of = {0, 1, 0, 1}});
  }
  CHECK_FLAW(Collective::all_gather, plans_of(Collective::all_gather, "mapped", 2),
             "reaches rank 1, which is on another node", {.node_of = {0, 1}});
}

TEST(more_traffic_between_nodes_than_promised_is_found) {
  const NodeOf node_of = node_by_node({2, 2});
  CHECK_FLAW(
      Collective::all_reduce, plans_of(Collective::all_reduce, "hierarchical", 4, 0, Order::any, node_of),
      "the busiest node sends 1 of the vector, expected 0.5", {.volume_of_node = 0.5, .node_of = node_of});
  Algorithm flat = algorithm_named(Collective::all_reduce, "hierarchical");
  flat.plan = algorithm_named(Collective::all_reduce, "direct").plan;
  CHECK_EQ(verify(flat, 4, node_of),
           "all_reduce:hierarchical of 4 ranks on nodes 0,0,1,1, root 0: the busiest node sends 2 of the "
           "vector, expected 1");
}

TEST(a_result_that_is_stored_before_it_was_published_is_found) {
  const NodeOf node_of = node_by_node({2, 2});
  Plans plans = plans_of(Collective::all_reduce, "hierarchical", 4, 0, Order::any, node_of);
  // Meet, node sums, ring, gather, store, meet: the store of the own chunk goes before the gather.
  auto& stages = plans[0].stages;
  const std::size_t store = stages.size() - 2;
  CHECK(stages[store].steps[0].op == Op::store_to);
  stages.insert(stages.begin() + static_cast<std::ptrdiff_t>(store) - 1, Stage{{stages[store].steps[0]}});
  auto& late = stages[store + 1].steps;
  late.erase(late.begin());
  CHECK_EQ(verify(Collective::all_reduce, 0, plans, {.lossy_codecs = false}), "");
  CHECK_FLAW(Collective::all_reduce, plans, "under a lossy codec", {});
}

TEST(nodes_under_any_numbers_are_numbered_by_their_lowest_ranks) {
  CHECK(numbered({7, 3, 7, 9, 3}) == NodeOf({0, 1, 0, 2, 1}));
  CHECK(numbered({5, 5}) == NodeOf({0, 0}));
  CHECK(numbered({2, 1, 0}).empty());
  CHECK(numbered({}).empty());
  CHECK(nodes_among({4, 4, 9, 9}, {1, 3, 2}) == NodeOf({0, 1, 1}));
  CHECK(nodes_among({4, 5, 9}, {2, 0}).empty());
  CHECK(nodes_among({}, {1, 3}).empty());
}
