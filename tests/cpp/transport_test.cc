// One suite for every transport that works among threads. Each test runs for all of them.
#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "ranks.h"
#include "transport/inproc.h"
#include "transport/transport.h"

using namespace pycomm;

namespace {

using Bytes = std::vector<std::byte>;
constexpr Tag kTag{3, 7};
constexpr auto kPatience = std::chrono::seconds(30);

Bytes pattern(std::size_t size, unsigned seed) {
  Bytes out(size);
  for (std::size_t i = 0; i < size; ++i)
    out[i] = static_cast<std::byte>((i * 31 + i / 251 + seed * 97) & 0xff);
  return out;
}

Bytes word(int value) {
  Bytes out(sizeof value);
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}

int value_of(std::span<const std::byte> bytes) {
  int value = 0;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

std::unique_ptr<Transport> create(const TransportEntry& entry, InprocFabric& fabric, int rank, int size = 0) {
  const auto handle = reinterpret_cast<std::uintptr_t>(&fabric);
  std::string why;
  return entry.create(Environment{rank, size ? size : fabric.size(), {{"inproc", handle}, {"shm", handle}}},
                      &why);
}

// All ranks of a world, connected.
struct World {
  World(const TransportEntry& entry, int size) : fabric(size) {
    for (int rank = 0; rank < size; ++rank) ends.push_back(create(entry, fabric, rank));
    for (int rank = 0; rank < size; ++rank)
      for (int peer = 0; peer < size; ++peer)
        if (peer != rank) CHECK(ends[rank]->reaches(peer, ends[peer]->address()));
  }
  Transport& operator[](int rank) { return *ends[rank]; }

  InprocFabric fabric;
  std::vector<std::unique_ptr<Transport>> ends;
};

void for_each_transport(const std::function<void(const TransportEntry&)>& test) {
  std::set<std::string> tested;
  for (const TransportEntry* entry : Registry<TransportEntry>::instance().all()) {
    InprocFabric fabric(1);
    if (!create(*entry, fabric, 0)) continue;
    tested.insert(entry->name);
    try {
      test(*entry);
    } catch (const std::exception& error) {
      throw check::Failure(entry->name + ": " + error.what());
    }
  }
  CHECK(tested.contains("inproc") && tested.contains("inproc_mapped") && tested.contains("shm"));
}

// Polls until done; a message that never comes is a failure, not a hang.
std::size_t finish(Transport& transport, Ticket ticket) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    if (const auto bytes = transport.poll(ticket)) return *bytes;
    if (std::chrono::steady_clock::now() > until) throw check::Failure("a ticket was never done");
    std::this_thread::yield();
  }
}

void send(Transport& transport, int peer, Tag tag, const Bytes& bytes) {
  CHECK_EQ(finish(transport, transport.post_send(peer, tag, bytes)), bytes.size());
}

void receive_expecting(Transport& transport, int peer, Tag tag, const Bytes& expected) {
  Bytes got(expected.size());
  CHECK_EQ(finish(transport, transport.post_recv(peer, tag, got)), expected.size());
  CHECK(got == expected);
}

// A message of `size` bytes whose receive, when `receive_first`, is posted before its send.
void exchange_one(World& world, std::size_t size, bool receive_first) {
  const Bytes out = pattern(size, 1);
  Bytes in(size);
  Ticket receiving{}, sending{};
  if (receive_first) receiving = world[1].post_recv(0, kTag, in);
  if (receive_first) CHECK(!world[1].poll(receiving));
  sending = world[0].post_send(1, kTag, out);
  if (!receive_first) receiving = world[1].post_recv(0, kTag, in);
  CHECK_EQ(finish(world[1], receiving), size);
  CHECK_EQ(finish(world[0], sending), size);
  CHECK(in == out);
}

}  // namespace

TEST(transport_moves_messages_of_every_size_whoever_posts_first) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    for (std::size_t size : {0, 1, 2, 3, 7, 64, 509, 4096, 65537, 1 << 20}) {
      exchange_one(world, size, true);
      exchange_one(world, size, false);
    }
  });
}

TEST(transport_send_is_not_done_before_its_memory_may_be_rewritten) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    Bytes out = pattern(1000, 1);
    const Ticket sending = world[0].post_send(1, kTag, out);
    if (world[0].poll(sending))
      std::fill(out.begin(), out.end(), std::byte{0});  // a transport that keeps a copy
    receive_expecting(world[1], 0, kTag, pattern(1000, 1));
  });
}

TEST(transport_accepts_empty_messages_without_memory) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    const Ticket sending = world[0].post_send(1, kTag, {});
    CHECK_EQ(finish(world[1], world[1].post_recv(0, kTag, {})), 0u);
    CHECK_EQ(finish(world[0], sending), 0u);
  });
}

TEST(transport_matches_by_tag_and_by_source) {
  for_each_transport([](auto& entry) {
    World world(entry, 3);
    // The same words in other places of the tag are other streams; so is the same tag from another rank.
    const std::vector<std::pair<int, Tag>> streams = {
        {0, {1, 2}}, {0, {2, 1}}, {1, {1, 2}}, {1, {0, 0}}, {0, {0xffffff, 1}}};
    std::vector<Bytes> out;
    std::vector<Ticket> sending;
    for (std::size_t i = 0; i < streams.size(); ++i) out.push_back(word(static_cast<int>(i)));
    for (std::size_t i = 0; i < streams.size(); ++i)
      sending.push_back(world[streams[i].first].post_send(2, streams[i].second, out[i]));
    for (std::size_t i = streams.size(); i-- > 0;)
      receive_expecting(world[2], streams[i].first, streams[i].second, out[i]);
    for (std::size_t i = 0; i < streams.size(); ++i) finish(world[streams[i].first], sending[i]);
  });
}

TEST(transport_keeps_order_within_a_tag) {
  for_each_transport([](auto& entry) {
    constexpr int kMessages = 300;
    World world(entry, 2);
    std::vector<Bytes> out, in(kMessages, Bytes(sizeof(int)));
    std::vector<Ticket> sending, receiving;
    for (int i = 0; i < kMessages; ++i) out.push_back(word(i));
    // Parts of both sides are posted ahead of the other.
    for (int i = 0; i < 100; ++i) receiving.push_back(world[1].post_recv(0, kTag, in[i]));
    for (int i = 0; i < 200; ++i) sending.push_back(world[0].post_send(1, kTag, out[i]));
    for (int i = 100; i < kMessages; ++i) receiving.push_back(world[1].post_recv(0, kTag, in[i]));
    for (int i = 200; i < kMessages; ++i) sending.push_back(world[0].post_send(1, kTag, out[i]));
    for (int i = kMessages - 1; i >= 0; --i) CHECK_EQ(finish(world[1], receiving[i]), sizeof(int));
    for (int i = 0; i < kMessages; ++i) CHECK_EQ(value_of(in[i]), i, "in ", entry.name);
    for (const Ticket ticket : sending) finish(world[0], ticket);
  });
}

TEST(transport_tags_do_not_wait_for_each_other) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    const Bytes first = word(1), second = word(2);
    const Ticket blocked = world[0].post_send(1, {1, 1}, first);
    const Ticket free = world[0].post_send(1, {1, 2}, second);
    receive_expecting(world[1], 0, {1, 2}, second);
    finish(world[0], free);
    receive_expecting(world[1], 0, {1, 1}, first);
    finish(world[0], blocked);
  });
}

TEST(transport_receive_may_be_larger_than_the_message) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    const Bytes out = pattern(100, 5);
    Bytes in(1000, std::byte{0x55});
    const Ticket receiving = world[1].post_recv(0, kTag, in);
    send(world[0], 1, kTag, out);
    CHECK_EQ(finish(world[1], receiving), 100u);
    CHECK(std::memcmp(in.data(), out.data(), 100) == 0);
    for (std::size_t i = 100; i < in.size(); ++i) CHECK(in[i] == std::byte{0x55});
  });
}

TEST(transport_message_too_large_for_its_receive_is_an_error_with_both_sizes) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    const Bytes out = pattern(1001, 5);
    Bytes in(1000 + 8, std::byte{0x55});
    const Ticket receiving = world[1].post_recv(0, kTag, std::span(in).first(1000));
    const Ticket sending = world[0].post_send(1, kTag, out);
    CHECK_THROWS(finish(world[1], receiving), TransportError,
                 "a receive of 1000 bytes, and rank 0 sent 1001");
    CHECK(!world[1].poll(receiving));
    CHECK(world[1].cancel(receiving));
    CHECK_EQ(finish(world[0], sending), 1001u);
    for (std::size_t i = 1000; i < in.size(); ++i) CHECK(in[i] == std::byte{0x55});
    exchange_one(world, 10, true);  // the two still talk
  });
}

TEST(transport_cancelled_receive_leaves_its_memory_and_the_next_message_alone) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    Bytes given_up(8, std::byte{0x55});
    CHECK(world[1].cancel(world[1].post_recv(0, kTag, given_up)));
    exchange_one(world, 8, true);
    exchange_one(world, 8, false);
    CHECK(given_up == Bytes(8, std::byte{0x55}));
  });
}

TEST(transport_cancelled_send_says_whether_its_memory_is_free) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    const Bytes first = word(1), second = word(2), third = word(3);
    const Ticket kept = world[0].post_send(1, kTag, first);
    const Ticket given_up = world[0].post_send(1, kTag, second);
    const Ticket last = world[0].post_send(1, kTag, third);
    const bool withdrawn = world[0].cancel(given_up);
    receive_expecting(world[1], 0, kTag, first);
    Bytes next(second.size());  // it may come when it had been copied already
    CHECK_EQ(finish(world[1], world[1].post_recv(0, kTag, next)), next.size());
    if (next == second) receive_expecting(world[1], 0, kTag, third);
    CHECK(next == second || (withdrawn && next == third));
    if (entry.name.starts_with("inproc")) CHECK(withdrawn && next == third);
    finish(world[0], kept);
    finish(world[0], last);
  });
}

TEST(transport_ticket_that_is_done_can_be_cancelled) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    const Bytes out = pattern(64, 1);
    Bytes in(64);
    const Ticket receiving = world[1].post_recv(0, kTag, in);
    send(world[0], 1, kTag, out);
    CHECK(world[1].cancel(receiving));
    if (in != out) receive_expecting(world[1], 0, kTag, out);  // it had not arrived before somebody polled
  });
}

TEST(transport_spent_ticket_is_not_mistaken_for_another) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    const Ticket receiving = world[1].post_recv(0, kTag, {});
    CHECK(world[1].cancel(receiving));
    CHECK_THROWS(world[1].poll(receiving), Error, "names no posted");
    CHECK_THROWS(world[1].cancel(receiving), Error, "names no posted");
  });
}

TEST(transport_refuses_a_rank_outside_the_world) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    CHECK_THROWS(world[0].post_send(2, kTag, {}), InvalidArgument, "rank 2");
    CHECK_THROWS(world[0].post_recv(-1, kTag, {}), InvalidArgument, "rank -1");
    CHECK_THROWS(world[0].post_control(2, {}), InvalidArgument, "rank 2");
  });
}

TEST(transport_control_frames_arrive_from_all_in_order_of_each) {
  for_each_transport([](auto& entry) {
    constexpr int kRanks = 8, kFrames = 50;
    World world(entry, kRanks);
    run_ranks(kRanks, [&](int rank) {
      if (rank > 0) {
        for (int i = 0; i < kFrames; ++i) world[rank].post_control(0, word(i));
        return;
      }
      std::vector<int> next(kRanks, 0);
      const auto until = std::chrono::steady_clock::now() + kPatience;
      ControlFrame frame;
      for (int got = 0; got < (kRanks - 1) * kFrames;) {
        CHECK(std::chrono::steady_clock::now() < until);
        if (!world[0].poll_control(&frame)) {
          std::this_thread::yield();
          continue;
        }
        CHECK_EQ(value_of(frame.bytes), next.at(frame.peer), "from rank ", frame.peer);
        ++next[frame.peer];
        ++got;
      }
      CHECK(!world[0].poll_control(&frame));
    });
  });
}

TEST(transport_control_frames_are_copied_whole_and_bounded_in_size) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    for (std::size_t size : {std::size_t{0}, std::size_t{1}, kControlBytes}) {
      Bytes bytes = pattern(size, 9);
      world[0].post_control(1, bytes);
      std::fill(bytes.begin(), bytes.end(), std::byte{0});
      ControlFrame frame;
      while (!world[1].poll_control(&frame)) std::this_thread::yield();
      CHECK_EQ(frame.peer, 0);
      CHECK(frame.bytes == pattern(size, 9));
    }
    CHECK_THROWS(world[0].post_control(1, Bytes(kControlBytes + 1)), InvalidArgument, "513 bytes");
  });
}

TEST(transport_control_flood_is_refused_not_stored_without_end) {
  for_each_transport([](auto& entry) {
    World world(entry, 2);
    const auto flood = [&] {
      for (int i = 0; i < 1 << 20; ++i) world[0].post_control(1, word(i));
    };
    CHECK_THROWS(flood(), TransportError, "control frames");
    ControlFrame frame;
    CHECK(world[1].poll_control(&frame));
    CHECK_EQ(value_of(frame.bytes), 0);
  });
}

TEST(transport_all_to_all_among_64_threads) {
  for_each_transport([](auto& entry) {
    constexpr int kRanks = 64, kRounds = 3;
    World world(entry, kRanks);
    run_ranks(kRanks, [&](int rank) {
      for (int round = 0; round < kRounds; ++round) {
        const Tag tag{0, static_cast<std::uint32_t>(round)};
        std::vector<Bytes> out(kRanks), in(kRanks);
        std::vector<Ticket> tickets;
        for (int peer = 0; peer < kRanks; ++peer) {
          if (peer == rank) continue;
          out[peer] = pattern(100 + peer, rank * kRounds + round);
          in[peer].resize(100 + rank);
          tickets.push_back(world[rank].post_recv(peer, tag, in[peer]));
          tickets.push_back(world[rank].post_send(peer, tag, out[peer]));
        }
        for (const Ticket ticket : tickets) finish(world[rank], ticket);
        for (int peer = 0; peer < kRanks; ++peer)
          if (peer != rank) CHECK(in[peer] == pattern(100 + rank, peer * kRounds + round));
      }
    });
  });
}

TEST(transport_streams_both_ways_at_once) {
  for_each_transport([](auto& entry) {
    constexpr int kMessages = 400;
    World world(entry, 2);
    run_ranks(2, [&](int rank) {
      const int peer = 1 - rank;
      Bytes out, in(5000);
      for (int i = 0; i < kMessages; ++i) {
        out = pattern(1 + i * 12, i + rank);
        const Ticket sending = world[rank].post_send(peer, kTag, out);
        const Ticket receiving = world[rank].post_recv(peer, kTag, in);
        const std::size_t arrived = finish(world[rank], receiving);
        finish(world[rank], sending);
        CHECK(Bytes(in.begin(), in.begin() + static_cast<std::ptrdiff_t>(arrived)) ==
              pattern(1 + i * 12, i + peer));
      }
    });
  });
}

// The memory of the posts is freed with the endpoint: a sanitizer sees any peer that still uses it.
TEST(transport_destroyed_with_posts_outstanding_is_forgotten_by_its_peers) {
  for_each_transport([](auto& entry) {
    World world(entry, 3);
    auto out = std::make_unique<Bytes>(pattern(1000, 1));
    auto in = std::make_unique<Bytes>(1000);
    world[0].post_send(1, kTag, *out);
    world[0].post_recv(1, kTag, *in);
    world[0].post_send(1, {9, 9}, {});
    Bytes late(1000);
    const Bytes answer = pattern(1000, 2);
    world.ends[0].reset();
    out.reset();
    in.reset();
    const Ticket receiving = world[1].post_recv(0, kTag, late);
    const Ticket sending = world[1].post_send(0, kTag, answer);
    // Whether they are done depends on the transport, but nothing of rank 0 is touched.
    world[1].poll(receiving);
    world[1].poll(sending);
    const Ticket elsewhere = world[1].post_send(2, kTag, answer);
    receive_expecting(world[2], 1, kTag, answer);
    finish(world[1], elsewhere);
  });
}

TEST(transport_destroyed_while_peers_post_to_it) {
  for_each_transport([](auto& entry) {
    constexpr int kRanks = 6;
    for (int round = 0; round < 20; ++round) {
      World world(entry, kRanks);
      const Bytes out = pattern(2000, 1);
      run_ranks(kRanks, [&](int rank) {
        Bytes in(2000);
        for (int peer = 0; peer < kRanks; ++peer) {
          if (peer == rank) continue;
          world[rank].post_send(peer, kTag, out);
          world[rank].post_recv(peer, kTag, in);
        }
        world.ends[rank].reset();
      });
      CHECK(out == pattern(2000, 1));
    }
  });
}

TEST(transport_peer_memory_is_ordered_by_messages) {
  int mapped = 0;
  for_each_transport([&](auto& entry) {
    constexpr int kRounds = 200;
    World world(entry, 2);
    if (!world[0].peer_memory()) return;
    ++mapped;
    run_ranks(2, [&](int rank) {
      const int peer = 1 - rank;
      Transport& self = world[rank];
      const auto memory = self.peer_memory()->allocate(8000);
      const std::span mine(reinterpret_cast<std::int64_t*>(memory.get()), 1000);
      std::vector<std::int64_t> seen(1000);
      Region region = *self.peer_memory()->describe({memory.get(), 8000}), theirs;
      CHECK_EQ(region.bytes, 8000u);
      const auto swap = [&](std::span<const std::byte> out, std::span<std::byte> in) {
        const Ticket sending = self.post_send(peer, kTag, out);
        finish(self, self.post_recv(peer, kTag, in));
        finish(self, sending);
      };
      swap(std::as_bytes(std::span(&region, 1)), std::as_writable_bytes(std::span(&theirs, 1)));
      std::byte* const there = self.peer_memory()->map(peer, theirs);
      for (int round = 0; round < kRounds; ++round) {
        std::iota(mine.begin(), mine.end(), round * 7 + rank);
        swap({}, {});  // what was written is now to be seen there
        std::memcpy(seen.data(), there, 8000);
        for (int i = 0; i < 1000; ++i) CHECK_EQ(seen[i], round * 7 + peer + i);
        swap({}, {});  // it has been read
        const std::int64_t mark = -round - rank;
        std::memcpy(there + 8 * (round % 1000), &mark, 8);
        swap({}, {});  // a store to the peer is seen there
        CHECK_EQ(mine[round % 1000], -round - peer);
      }
    });
  });
  CHECK(mapped >= 2);
}

TEST(transports_of_one_fabric_do_not_mix) {
  InprocFabric fabric(2);
  auto& registry = Registry<TransportEntry>::instance();
  const auto copying = create(registry.get("inproc", "transport"), fabric, 0);
  const auto mapped = create(registry.get("inproc_mapped", "transport"), fabric, 1);
  const auto receiver = create(registry.get("inproc", "transport"), fabric, 1);
  const Bytes out = word(1);
  Bytes wrong(4), right(4);
  const Ticket never = mapped->post_recv(0, kTag, wrong);
  copying->post_control(1, out);
  const Ticket sending = copying->post_send(1, kTag, out);
  ControlFrame frame;
  CHECK(!mapped->poll(never) && !mapped->poll_control(&frame));
  CHECK_EQ(finish(*receiver, receiver->post_recv(0, kTag, right)), 4u);
  CHECK(receiver->poll_control(&frame));
  finish(*copying, sending);
  CHECK(right == out);
}

TEST(transport_that_cannot_work_says_why) {
  for (const TransportEntry* entry : Registry<TransportEntry>::instance().all()) {
    std::string why;
    CHECK(!entry->create(Environment{}, &why));
    CHECK(!why.empty());
  }
}

TEST(transport_refuses_a_world_of_another_size) {
  for_each_transport([](auto& entry) {
    InprocFabric fabric(2);
    CHECK_THROWS(create(entry, fabric, 0, 3), InvalidArgument, "rank 0 of 3");
    CHECK_THROWS(create(entry, fabric, 2, 2), InvalidArgument, "rank 2 of 2");
  });
  CHECK_THROWS(InprocFabric(0), InvalidArgument, "0 ranks");
}
