// Shared memory: what its heap, its rings and its slots promise. Ranks are threads, so that sanitizers see
// them; tests/cpp/shm_process_test.cc has the same between processes.
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "engines.h"
#include "ranks.h"
#include "transport/shm_heap.h"
#include "transport/shm_ring.h"

namespace pycomm {
namespace {

using Bytes = std::vector<std::byte>;
constexpr std::size_t kMB = std::size_t{1} << 20;
constexpr Tag kTag{1, 2};
constexpr std::int64_t kCount = 1003;

TEST(shm_heap_uses_freed_memory_again_and_joins_neighbours) {
  shm::Heap heap(4 * kMB);
  std::byte* const a = heap.allocate(kMB);
  std::byte* const b = heap.allocate(kMB);
  std::byte* const c = heap.allocate(2 * kMB);
  CHECK(a && b && c);
  CHECK(!heap.allocate(1));
  CHECK_EQ(heap.free_bytes(), 0u);
  heap.free(a);
  heap.free(c);
  CHECK(!heap.allocate(3 * kMB));  // the holes are apart
  heap.free(b);
  CHECK_EQ(heap.free_bytes(), 4 * kMB);
  CHECK(heap.allocate(4 * kMB) == a);
}

TEST(shm_heap_aligns_to_cache_lines_and_refuses_what_overflows) {
  shm::Heap heap(kMB);
  for (const std::size_t bytes : {0, 1, 63, 64, 65, 4097}) {
    std::byte* const block = heap.allocate(bytes);
    CHECK(block && reinterpret_cast<std::uintptr_t>(block) % 64 == 0);
  }
  CHECK(!heap.allocate(~std::size_t{0}));
}

TEST(shm_heap_gives_the_pages_of_large_blocks_back) {
  shm::Heap heap(4 * kMB);
  std::byte* const block = heap.allocate(2 * kMB);
  std::memset(block, 0x55, 2 * kMB);
  heap.free(block);
  CHECK(heap.allocate(2 * kMB) == block);
  CHECK(block[0] == std::byte{0} && block[2 * kMB - 1] == std::byte{0});  // new pages
}

TEST(shm_heap_is_sized_by_the_setting_and_the_number_of_ranks) {
  CHECK_EQ(shm::Heap::choose_bytes(64 * kMB, 2), 64 * kMB);
  CHECK_EQ(shm::Heap::choose_bytes(1, 2), kMB);
  CHECK(shm::Heap::choose_bytes(0, 2) >= kMB);
  CHECK(shm::Heap::choose_bytes(std::int64_t{1} << 44, 64) <= std::size_t{1} << 39);
}

TEST(shm_ring_keeps_messages_whole_and_in_order_over_many_laps) {
  constexpr int kMessages = 20000;
  const auto ring = std::make_unique<shm::Ring<64>>();
  const auto length = [](int i) { return static_cast<std::size_t>(i * 37 % 450); };
  run_ranks(2, [&](int rank) {
    Bytes bytes(450);
    if (rank == 0) {
      shm::RingWriter<64> writer(*ring);
      for (int i = 0; i < kMessages; ++i) {
        // All bits set: a flag left over from these bytes would be taken for a message.
        std::fill(bytes.begin(), bytes.end(), static_cast<std::byte>(i % 2 ? 0xff : i));
        while (!writer.write(shm::Kind::copied, i % 7, {7, static_cast<std::uint32_t>(i)},
                             std::span(bytes).first(length(i))))
          std::this_thread::yield();
      }
      return;
    }
    shm::RingReader<64> reader(*ring);
    for (int i = 0; i < kMessages;) {
      const auto message = reader.peek();
      if (!message) {
        std::this_thread::yield();
        continue;
      }
      CHECK(message->kind == shm::Kind::copied && message->slot == static_cast<std::uint32_t>(i % 7));
      CHECK(message->tag == (Tag{7, static_cast<std::uint32_t>(i)}));
      CHECK_EQ(message->data.size(), length(i));
      for (const std::byte byte : message->data) CHECK(byte == static_cast<std::byte>(i % 2 ? 0xff : i));
      reader.pop(*message);
      ++i;
    }
    CHECK(!reader.peek());
  });
}

TEST(shm_ring_is_full_until_it_is_read) {
  const auto ring = std::make_unique<shm::Ring<64>>();
  shm::RingWriter<64> writer(*ring);
  shm::RingReader<64> reader(*ring);
  int written = 0;
  while (writer.write(shm::Kind::copied, shm::kNoSlot, kTag, Bytes(100))) ++written;
  CHECK_EQ(written, 31);  // two cells each, and one that stays free
  reader.pop(*reader.peek());
  CHECK(writer.write(shm::Kind::copied, shm::kNoSlot, kTag, Bytes(100)));
  CHECK(!writer.write(shm::Kind::copied, shm::kNoSlot, kTag, Bytes(100)));
}

// Two ranks, connected, with small heaps.
struct Pair {
  explicit Pair(std::int64_t heap_bytes = 8 * kMB) : fabric(2) {
    const auto& entry = Registry<TransportEntry>::instance().get("shm", "transport");
    std::string why;
    for (int rank : {0, 1}) {
      Environment environment{rank, 2, {{"shm", reinterpret_cast<std::uintptr_t>(&fabric)}}};
      environment.heap_bytes = heap_bytes;
      ends.push_back(entry.create(environment, &why));
    }
    for (int rank : {0, 1}) CHECK(ends[rank]->reaches(1 - rank, ends[1 - rank]->address()));
  }
  Transport& operator[](int rank) { return *ends[rank]; }

  InprocFabric fabric;
  std::vector<std::unique_ptr<Transport>> ends;
};

std::size_t finish(Transport& transport, Ticket ticket) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  for (;;) {
    if (const auto bytes = transport.poll(ticket)) return *bytes;
    if (std::chrono::steady_clock::now() > until) throw check::Failure("a ticket was never done");
    std::this_thread::yield();
  }
}

TEST(shm_message_in_the_heap_is_read_where_it_lies) {
  Pair pair;
  const std::size_t size = 100000;
  const auto memory = pair[0].peer_memory()->allocate(size);
  std::memset(memory.get(), 1, size);
  const Ticket sending = pair[0].post_send(1, kTag, {memory.get(), size});
  std::memset(memory.get(), 2, size);  // against the rules, to see from where it comes
  Bytes in(size);
  CHECK_EQ(finish(pair[1], pair[1].post_recv(0, kTag, in)), size);
  CHECK(in == Bytes(size, std::byte{2}));
  CHECK_EQ(finish(pair[0], sending), size);
}

TEST(shm_message_that_was_withdrawn_in_time_is_never_read) {
  Pair pair;
  const std::size_t size = 100000;
  for (const bool expected : {false, true}) {
    Bytes in(size), later(4);
    const Ticket receiving = expected ? pair[1].post_recv(0, kTag, in) : Ticket{};
    {
      const auto memory = pair[0].peer_memory()->allocate(size);
      std::memset(memory.get(), 1, size);
      CHECK(pair[0].cancel(pair[0].post_send(1, kTag, {memory.get(), size})));
    }
    const Bytes out(4, std::byte{7});
    const Ticket sending = pair[0].post_send(1, kTag, out);
    CHECK_EQ(finish(pair[1], expected ? receiving : pair[1].post_recv(0, kTag, later)), 4u);
    CHECK((expected ? in : later)[0] == std::byte{7});
    finish(pair[0], sending);
  }
}

TEST(shm_more_messages_than_slots_wait_their_turn) {
  Pair pair;
  constexpr std::size_t kSize = 5000, kMessages = 3 * shm::kSlots;
  run_ranks(2, [&](int rank) {
    std::deque<Bytes> memory;
    std::vector<Ticket> tickets;
    for (std::size_t i = 0; i < kMessages; ++i) {
      memory.emplace_back(kSize, static_cast<std::byte>(rank == 0 ? i % 251 : 255));
      tickets.push_back(rank == 0 ? pair[0].post_send(1, kTag, memory.back())
                                  : pair[1].post_recv(0, kTag, memory.back()));
    }
    std::size_t right = 0;  // checks in between would order the ranks' memory, and hide a race
    for (std::size_t i = 0; i < kMessages; ++i)
      right += finish(pair[rank], tickets[i]) == kSize &&
               memory[i] == Bytes(kSize, static_cast<std::byte>(i % 251));
    CHECK_EQ(right, kMessages);
  });
}

TEST(shm_full_heap_says_how_to_enlarge_it_and_leaves_room_for_messages) {
  Pair pair(2 * kMB);
  PeerMemory& memory = *pair[0].peer_memory();
  std::vector<std::shared_ptr<std::byte>> all;
  const auto fill = [&] {
    for (;;) all.push_back(memory.allocate(kMB / 8));
  };
  CHECK_THROWS(fill(), TransportError, "PYCOMM_HEAP_MB");
  CHECK(all.size() >= 10);
  const Bytes out(50000, std::byte{3});
  Bytes in(out.size());
  const Ticket sending = pair[0].post_send(1, kTag, out);
  CHECK_EQ(finish(pair[1], pair[1].post_recv(0, kTag, in)), in.size());
  CHECK(in == out);
  finish(pair[0], sending);
  CHECK_THROWS(pair[0].post_send(1, kTag, Bytes(2 * kMB)), TransportError, "does not fit");
  all.clear();
  CHECK(memory.allocate(kMB) != nullptr);
}

TEST(shm_memory_outlives_its_transport) {
  std::shared_ptr<std::byte> memory;
  {
    Pair pair;
    memory = pair[0].peer_memory()->allocate(2 * kMB);
  }
  std::memset(memory.get(), 1, 2 * kMB);
  CHECK(memory.get()[2 * kMB - 1] == std::byte{1});
}

TEST(shm_peer_that_has_gone_is_noticed_after_what_it_sent) {
  Pair pair;
  const Bytes out(10, std::byte{1});
  pair[0].post_control(1, out);
  pair[0].post_send(1, kTag, out);
  pair[1].connect(0);
  ControlFrame frame;
  while (!pair[1].poll_control(&frame)) std::this_thread::yield();
  CHECK(!pair[1].poll_departure());
  pair[0].post_control(1, out);
  pair.ends[0].reset();
  std::optional<int> gone;
  bool told = false;
  while (!gone) {
    while (pair[1].poll_control(&frame)) told = true;
    gone = pair[1].poll_departure();
  }
  CHECK_EQ(*gone, 0);
  CHECK(told);
  CHECK(!pair[1].poll_departure());
  Bytes in(10);
  CHECK_EQ(finish(pair[1], pair[1].post_recv(0, kTag, in)), 10u);
  CHECK(in == out);
}

// Which ranks lend memory of theirs, for input and output: none, some, all.
TEST(shm_mapped_plans_run_on_any_mix_of_memory) {
  for (const int size : {2, 3, 4}) {
    run_engines(
        size, {.transport = "shm", .heap_mb = 16}, [&](const std::shared_ptr<Communicator>& communicator) {
          const int rank = communicator->rank();
          PeerMemory& memory = *communicator->engine().router().any_peer_memory();
          const auto in_heap = memory.allocate((2 * kCount + 16) * sizeof(float));
          std::vector<float> plain(2 * kCount + 16);
          for (int mix = 0; mix < 4 * (1 << size); ++mix) {
            const bool heap = mix >> rank & 1, in_place = mix >> size & 1, shifted = mix >> (size + 1) & 1;
            // Misaligned by an element on odd ranks.
            float* const base =
                (heap ? reinterpret_cast<float*>(in_heap.get()) : plain.data()) + (shifted && rank % 2);
            const auto mine = contribution(rank, kCount);
            std::copy(mine.begin(), mine.end(), base);
            float* const out = in_place ? base : base + kCount + 3;
            const auto view = [](float* data) {
              return View{reinterpret_cast<std::byte*>(data), kCount, DType::f32};
            };
            if (!in_place) out[-1] = out[kCount] = -7;
            Call call = all_reduce(view(base));
            call.output = view(out);
            call.algorithm = "mapped";
            wait(*communicator, communicator->submit(std::move(call)));
            CHECK(std::vector<float>(out, out + kCount) == sum_of_contributions(size, kCount));
            if (!in_place) CHECK(std::vector<float>(base, base + kCount) == mine);
            if (!in_place) CHECK(out[-1] == -7 && out[kCount] == -7);
          }
        });
  }
}

TEST(shm_subgroups_address_only_their_own_ranks) {
  run_engines(4, {.transport = "shm"}, [&](const std::shared_ptr<Communicator>& world) {
    const int half = world->rank() / 2;
    const auto group =
        world->subgroup(1, world->rank() % 2, {2 * half, 2 * half + 1}, world->segment_bytes());
    for (int round = 0; round < 20; ++round) {
      std::vector<float> values(3000, static_cast<float>(world->rank() + round));
      Call call = all_reduce(view_of(values));
      call.algorithm = "mapped";
      wait(*group, group->submit(std::move(call)));
      CHECK(values == std::vector<float>(3000, static_cast<float>(4 * half + 1 + 2 * round)));
    }
  });
}

}  // namespace
}  // namespace pycomm
