// What plans cost, against sums done by hand.
#include "plan/cost.h"

#include <cmath>

#include "check.h"

using namespace pycomm;

namespace {

constexpr double kAlpha = 5, kMessage = 1, kByte = 0.5, kReduced = 0.25, kCopied = 0.125, kRead = 2,
                 kStored = 3;

Prices prices() {
  return {.call_s = 100,
          .byte_reduced_s = kReduced,
          .byte_copied_s = kCopied,
          .byte_read_s = kRead,
          .byte_stored_s = kStored,
          .links = {{"mpi", {kAlpha, kMessage, kByte}}, {"mpi/network", {kAlpha, kMessage, kByte}}}};
}

// Without segments, so that nothing overlaps.
double price(Collective collective, const char* name, const Links& links, Load load) {
  if (load.segment_bytes < 1e6) load.segment_bytes = 1e6;
  return Costing(algorithm_named(collective, name), links).seconds(load, prices()) - 100;
}

double price(Collective collective, const char* name, int size, double bytes) {
  return price(collective, name, Links(size, "mpi"), {.bytes = bytes});
}

bool near(double got, double expected) {
  return std::abs(got - expected) < 1e-9 * std::abs(expected);
}

}  // namespace

TEST(a_message_costs_latency_and_both_ends_and_its_bytes) {
  CHECK(near(price(Collective::broadcast, "direct", 2, 64), kMessage + kAlpha + kMessage + 64 * kByte));
  CHECK(near(price(Collective::broadcast, "direct", 2, 0), 2 * kMessage + kAlpha));
}

TEST(a_long_first_message_follows_its_header) {
  CHECK(near(price(Collective::broadcast, "direct", 2, 8192), 4 * kMessage + kAlpha + 8192 * kByte));
}

TEST(a_binomial_broadcast_on_4_ranks_takes_two_rounds) {
  const double hop = 2 * kMessage + kAlpha + 64 * kByte;
  CHECK(near(price(Collective::broadcast, "binomial", 4, 64), 2 * hop));
  // One after another out of the root, the last one's message after two others.
  CHECK(near(price(Collective::broadcast, "direct", 4, 64), hop + 2 * kMessage));
}

TEST(a_ring_pays_every_stage) {
  for (int size : {2, 3, 5, 8}) {
    const double chunk = 64, stage = 2 * kMessage + kAlpha + chunk * kByte;
    CHECK(near(price(Collective::all_reduce, "ring", size, size * chunk),
               (size - 1) * (2 * stage + chunk * kReduced)));
  }
}

TEST(what_a_rank_does_alone_is_paid_too) {
  // Copies its own; then a message each way.
  CHECK(
      near(price(Collective::all_gather, "ring", 2, 128), 64 * kCopied + 2 * kMessage + kAlpha + 64 * kByte));
}

TEST(mapped_steps_pay_two_meetings_and_what_they_read_and_store) {
  const double meeting = 2 * kMessage + kAlpha + 32 * kByte;
  CHECK(near(price(Collective::all_reduce, "mapped", 2, 128), 2 * meeting + 2 * 64 * kRead + 64 * kStored));
}

TEST(on_a_network_bytes_go_out_and_in_at_once) {
  // Memory: each rank copies what comes, one after the other. Network: they come while others go.
  const double chunk = 64;
  const Links network(2, "mpi/network");
  CHECK(near(price(Collective::all_gather, "ring", network, {.bytes = 2 * chunk}),
             chunk * kCopied + 2 * kMessage + kAlpha + chunk * kByte));
  const double swap = price(Collective::all_to_all, "direct", Links(3, "mpi/network"), {.bytes = 3 * chunk});
  const double one = kMessage + kAlpha + chunk * kByte;
  CHECK(swap > one + chunk * kByte && swap < one + chunk * kByte + 8 * kMessage + chunk * kCopied + kAlpha);
}

TEST(stages_overlap_by_segments) {
  // Two hops of a long message take hardly longer than one.
  const Links links(4, "mpi/network");
  Costing costing(algorithm_named(Collective::gather, "binomial"), links);
  Costing down(algorithm_named(Collective::broadcast, "binomial"), Links(3, "mpi/network"));
  const double whole = down.seconds({.bytes = 1e6, .segment_bytes = 1e6}, prices());
  const double cut = down.seconds({.bytes = 1e6, .segment_bytes = 1e3}, prices());
  CHECK(cut < whole + 2000 * kMessage);
  CHECK(costing.seconds({.bytes = 4e6, .segment_bytes = 1e4}, prices()) <
        costing.seconds({.bytes = 4e6, .segment_bytes = 1e6}, prices()));
}

TEST(half_precision_codecs_and_crowded_cores_cost_more) {
  Prices dear = prices();
  dear.half_factor = 4;
  dear.byte_coded_s = 1;
  dear.switch_s = 50;
  const Costing ring(algorithm_named(Collective::all_reduce, "ring"), Links(4, "mpi"));
  const double plain = ring.seconds({.bytes = 4096}, dear);
  CHECK(ring.seconds({.bytes = 4096, .half = true}, dear) > plain);
  CHECK(ring.seconds({.bytes = 4096, .wire_ratio = 0.5}, dear) < plain);
  CHECK(ring.seconds({.bytes = 4096, .wire_ratio = 0.5, .coded = true}, dear) > plain);
  CHECK(ring.seconds({.bytes = 4096, .crowd = 2}, dear) > plain + 6 * 50);
}

TEST(bytes_beyond_the_cache_cost_more) {
  Prices far = prices();
  far.cache_bytes = 1 << 20;
  far.far_factor = 3;
  const Costing direct(algorithm_named(Collective::broadcast, "direct"), Links(2, "mpi"));
  const double within = direct.seconds({.bytes = 1 << 18, .segment_bytes = 1e9}, far);
  CHECK(near(within, direct.seconds({.bytes = 1 << 18, .segment_bytes = 1e9}, prices())));
  CHECK(direct.seconds({.bytes = 1 << 24, .segment_bytes = 1e9}, far) > 2.5 * 64 * within);
}

// Where all ranks' plans are not played through, the price grows on as the rounds do.
TEST(many_ranks_are_priced_from_fewer) {
  const auto at = [](Collective collective, const char* name, int size, double bytes) {
    return price(collective, name, size, bytes);
  };
  const double stage = 2 * kMessage + kAlpha;
  CHECK(near(at(Collective::all_reduce, "ring", 1024, 0), 2 * 1023 * stage));
  CHECK(near(at(Collective::broadcast, "binomial", 1024, 0), 10 * stage));
  const double long_ring = at(Collective::all_reduce, "ring", 1024, 1e9);
  CHECK(std::abs(long_ring / (2 * 1e9 * kByte + 1e9 * kReduced) - 1) < 0.1);
}

TEST(links_of_several_kinds_are_priced_each) {
  // Ranks 0 and 1 share a machine, rank 2 is across the network.
  const Links links({"- 1 mpi 1 mpi/network 1 ", "mpi 1 - 1 mpi/network 1 ", "mpi/network 2 - 1 "});
  CHECK_EQ(links.name(), "mpi+mpi/network");
  CHECK_EQ(links.ranks_per_machine(), 2);
  CHECK_EQ(links.pairs_of("mpi/network"), 2);
  CHECK_EQ(links.among({0, 1}).name(), "mpi");
  CHECK_EQ(links.among({2, 0}).name(), "mpi/network");
  CHECK_EQ(links.among({2}).name(), "none");
  Prices dear = prices();
  dear.links["mpi/network"].latency_s = 1000;
  const Algorithm& direct = algorithm_named(Collective::broadcast, "direct");
  CHECK(Costing(direct, links).seconds({}, dear) > 1000);
  CHECK(Costing(direct, links.among({0, 1})).seconds({}, dear) < 200);
}
