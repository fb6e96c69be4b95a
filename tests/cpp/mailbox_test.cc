// Mailboxes with ranks as threads: what the sanitizers run.
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/mailbox.h"
#include "engine/thread_world.h"
#include "ranks.h"

namespace pycomm {
namespace {

using Bytes = std::vector<std::byte>;
using Body = std::function<void(const std::shared_ptr<Communicator>&)>;

struct Options {
  std::string transport = "inproc";
  bool progress_thread = false;
};

const Options kWays[] = {
    {"inproc", false}, {"inproc", true}, {"inproc_mapped", false}, {"inproc_mapped", true}};

void run_engines(int size, const Options& options, const Body& body) {
  ThreadWorld world(size);
  run_ranks(size, [&](int rank) {
    Settings settings;
    settings.transports = {options.transport};
    settings.segment_bytes = 1024;
    settings.timeout_s = 60;
    try {
      const auto engine =
          Engine::create({rank, size, world.handles(), nullptr}, settings, options.progress_thread);
      std::vector<int> ranks(size);
      std::iota(ranks.begin(), ranks.end(), 0);
      body(std::make_shared<Communicator>(engine, std::make_shared<Group>(0, rank, ranks),
                                          engine->segment_bytes()));
      engine->close();
    } catch (...) {
      world.abort("a rank failed");
      throw;
    }
  });
}

Bytes pattern(std::size_t size, int seed) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + seed);
  return bytes;
}

// A message of two pieces; the memory is kept by the work.
std::shared_ptr<Work> send(Mailbox& box, int peer, const std::string& head, const Bytes& content,
                           double timeout_s = 0) {
  const auto memory = std::make_shared<Bytes>(content);
  Mailbox::Post post;
  post.peer = peer;
  post.head = head;
  const std::span<const std::byte> all(*memory);
  post.pieces = {all.first(content.size() / 3), all.subspan(content.size() / 3)};
  post.keepalive = memory;
  post.timeout_s = timeout_s;
  return box.submit(std::move(post));
}

void finish(const Mailbox& box, const std::shared_ptr<Work>& work) {
  while (!box.communicator().wait(*work, 1.0)) {
  }
  if (const Failure* failure = work->failure()) raise(failure->kind, failure->what);
}

Delivery receive(Mailbox& box, int source = Mailbox::kAnyone) {
  while (true) {
    if (auto delivery = box.take(source)) return std::move(*delivery);
    box.wait(source, 1.0);
  }
}

Bytes joined(const Message& message) {
  Bytes all;
  for (const auto& piece : message.pieces()) all.insert(all.end(), piece.begin(), piece.end());
  return all;
}

std::size_t size_of_message(int number) {
  constexpr std::size_t kSizes[] = {0, 1, 400, 480, 1023, 1024, 1025, 5000, 70000};
  return kSizes[number % std::size(kSizes)];
}

void barrier(Communicator& communicator) {
  const auto work = communicator.submit({});
  while (!communicator.wait(*work, 1.0)) {
  }
}

TEST(mailbox_many_senders_to_one_box_while_collectives_run) {
  for (const Options& options : kWays) {
    run_engines(5, options, [](const std::shared_ptr<Communicator>& communicator) {
      constexpr int kMessages = 90;  // more than a box holds
      Mailbox box(communicator, 7);
      std::vector<float> values(3000, 1.0f);
      Call call;
      call.collective = Collective::all_reduce;
      call.input = call.output = {reinterpret_cast<std::byte*>(values.data()), 3000, DType::f32};
      const auto reduced = communicator->submit(std::move(call));
      if (communicator->rank() == 0) {
        std::vector<int> due(communicator->size());
        for (int i = 0; i < 4 * kMessages; ++i) {
          const Delivery delivery = receive(box);
          const int number = due[delivery.source]++;
          CHECK_EQ(delivery.message->head(), std::to_string(number));
          CHECK(joined(*delivery.message) == pattern(size_of_message(number), delivery.source));
        }
        CHECK(!box.take(Mailbox::kAnyone));
      } else {
        std::vector<std::shared_ptr<Work>> works;
        for (int i = 0; i < kMessages; ++i)
          works.push_back(send(box, 0, std::to_string(i), pattern(size_of_message(i), communicator->rank())));
        for (const auto& work : works) finish(box, work);
      }
      while (!communicator->wait(*reduced, 1.0)) {
      }
      CHECK_EQ(values[2999], 5.0f);
      barrier(*communicator);
    });
  }
}

TEST(mailbox_serves_many_threads_of_every_rank) {
  for (const Options& options : kWays) {
    run_engines(3, options, [](const std::shared_ptr<Communicator>& communicator) {
      constexpr int kEach = 40;
      Mailbox boxes[] = {{communicator, 0}, {communicator, 1}};
      const int to = (communicator->rank() + 1) % 3;
      const int from = (communicator->rank() + 2) % 3;
      run_ranks(4, [&](int thread) {
        Mailbox& box = boxes[thread % 2];
        if (thread < 2) {
          for (int i = 0; i < kEach; ++i)
            finish(box, send(box, to, std::to_string(i), pattern(size_of_message(i), i)));
        } else {
          for (int i = 0; i < kEach; ++i) {
            const Delivery delivery = receive(box, i % 2 ? from : Mailbox::kAnyone);
            CHECK_EQ(delivery.message->head(), std::to_string(i));
            CHECK(joined(*delivery.message) == pattern(size_of_message(i), i));
          }
        }
      });
      barrier(*communicator);
    });
  }
}

TEST(mailbox_random_traffic_among_all) {
  for (const Options& options : kWays) {
    run_engines(4, options, [](const std::shared_ptr<Communicator>& communicator) {
      const int rank = communicator->rank();
      Mailbox box(communicator, 3);
      std::vector<std::shared_ptr<Work>> works;
      std::vector<std::vector<int>> expected(4);
      for (int source = 0; source < 4; ++source) {
        std::mt19937 random(source);
        for (int i = 0; i < 100; ++i) {
          const int peer = static_cast<int>(random() % 4);
          const int number = static_cast<int>(random() % 1000);
          if (peer == rank) expected[source].push_back(number);
          if (source == rank)
            works.push_back(
                send(box, peer, std::to_string(number), pattern(size_of_message(number), number)));
        }
      }
      std::vector<std::size_t> next(4);
      for (std::size_t left =
               expected[0].size() + expected[1].size() + expected[2].size() + expected[3].size();
           left > 0; --left) {
        const Delivery delivery = receive(box);
        const int number = expected[delivery.source].at(next[delivery.source]++);
        CHECK_EQ(delivery.message->head(), std::to_string(number));
        CHECK(joined(*delivery.message) == pattern(size_of_message(number), number));
      }
      for (const auto& work : works) finish(box, work);
      barrier(*communicator);
    });
  }
}

TEST(mailbox_serves_sixty_four_ranks) {
  run_engines(64, {}, [](const std::shared_ptr<Communicator>& communicator) {
    Mailbox box(communicator, 0);
    if (communicator->rank() == 0) {
      long sum = 0;
      for (int i = 0; i < 63 * 20; ++i) sum += std::stol(receive(box).message->head());
      CHECK_EQ(sum, 63L * 64 / 2 * 20);
    } else {
      for (int i = 0; i < 20; ++i) finish(box, send(box, 0, std::to_string(communicator->rank()), {}));
    }
    barrier(*communicator);
  });
}

TEST(mailbox_closes_with_mail_in_flight) {
  for (const Options& options : kWays) {
    std::vector<std::shared_ptr<Work>> works;
    run_engines(3, options, [&](const std::shared_ptr<Communicator>& communicator) {
      Mailbox box(communicator, 7);
      barrier(*communicator);
      if (communicator->rank() == 0) return;
      std::vector<std::shared_ptr<Work>> mine;
      for (int i = 0; i < 200; ++i) mine.push_back(send(box, 0, "", pattern(size_of_message(i), i)));
      box.poke();
      communicator->engine().close();
      for (const auto& work : mine) CHECK(work->done());
      CHECK(mine.back()->failure() != nullptr);
      CHECK_THROWS(send(box, 0, "", {}), Aborted, "shut down");
      CHECK_THROWS(box.take(0), Aborted, "shut down");
    });
  }
}

TEST(mailbox_closes_under_waiting_receivers) {
  for (const bool progress_thread : {false, true}) {
    run_engines(2, {.progress_thread = progress_thread},
                [](const std::shared_ptr<Communicator>& communicator) {
                  Mailbox box(communicator, 7);
                  std::vector<std::thread> receivers;
                  std::atomic<int> refused{0};
                  for (int i = 0; i < 3; ++i)
                    receivers.emplace_back([&] {
                      try {
                        receive(box, communicator->rank());
                      } catch (const Aborted&) {
                        ++refused;
                      }
                    });
                  std::this_thread::sleep_for(std::chrono::milliseconds(5));
                  communicator->engine().close();
                  for (auto& receiver : receivers) receiver.join();
                  CHECK_EQ(refused.load(), 3);
                });
  }
}

TEST(mailbox_a_message_given_up_before_it_goes_breaks_nothing_and_after_that_the_communicator) {
  std::atomic<bool> out{false}, broken{false};
  run_engines(2, {}, [&](const std::shared_ptr<Communicator>& world) {
    const auto group = world->subgroup(1, world->rank(), {0, 1}, world->segment_bytes());
    Mailbox box(group, 7);
    if (world->rank() == 0) {
      for (int i = 0; i < 64; ++i) finish(box, send(box, 1, "x", {}));
      const auto waiting = send(box, 1, "never goes", {});
      waiting->abandon("interrupted");
      CHECK_THROWS(finish(box, waiting), Aborted, "interrupted");
      CHECK(!group->failure());
      barrier(*world);
      while (!out) std::this_thread::yield();
      // Rank 1 is in no call: the message is announced, and its first segments are posted.
      Mailbox other(group, 8);
      CHECK_THROWS(finish(other, send(other, 1, "x", pattern(100000, 0), 0.02)), Timeout,
                   "rank 1 has taken 0");
      CHECK(group->failure().has_value());
      broken = true;
    } else {
      barrier(*world);
      for (int i = 0; i < 64; ++i) {
        const Delivery delivery = receive(box, 0);
        CHECK_EQ(delivery.message->head(), "x");
      }
      out = true;
      while (!broken) std::this_thread::yield();
      CHECK_THROWS(receive(box), Timeout, "send of 100");
    }
    barrier(*world);
  });
}

// Random bytes where a peer's frames belong: errors, no crash, no hang.
TEST(mailbox_refuses_torn_frames) {
  run_engines(2, {}, [](const std::shared_ptr<Communicator>& communicator) {
    barrier(*communicator);
    if (communicator->rank() == 1) return barrier(*communicator);
    auto& service = communicator->engine().driver().service<MailService>();
    Mailbox box(communicator, 0);
    std::mt19937 random(1);
    int refused = 0;
    for (int round = 0; round < 20000; ++round) {
      Bytes frame(random() % 120);
      for (auto& byte : frame) byte = static_cast<std::byte>(random() % 3 ? 0 : random());
      if (!frame.empty()) frame[0] = std::byte{1};  // a letter; others are credits and announcements
      try {
        service.frame(1, frame);
      } catch (const TransportError&) {
        ++refused;
      }
    }
    CHECK(refused > 10000);
    CHECK_THROWS(service.frame(1, Bytes(40, std::byte{9})), TransportError, "unknown type 9");
    CHECK_THROWS(service.frame(1, Bytes(40, std::byte{3})), TransportError, "received more");
    CHECK_THROWS(service.frame(1, Bytes(40, std::byte{2})), TransportError, "no room for a message");
    CHECK_THROWS(service.frame(1, Bytes(39)), TransportError, "torn mailbox frame of 39 bytes");
    barrier(*communicator);
  });
}

TEST(mailbox_heads_that_do_not_fit_are_refused) {
  const auto table = [](std::vector<std::uint64_t> sizes) {
    Bytes bytes(8 * sizes.size());
    std::memcpy(bytes.data(), sizes.data(), bytes.size());
    return bytes;
  };
  const Message good(table({3, 0, 70}), 3, 73);
  CHECK_EQ(good.pieces().size(), std::size_t{3});
  CHECK_EQ(good.pieces()[2].data() - good.memory().data(), 64);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(good.memory().data()) % 64, std::uintptr_t{0});
  CHECK_THROWS(Message(table({3}), 2, 3), TransportError, "2 pieces in a head of 8 bytes");
  CHECK_THROWS(Message(table({3}), std::size_t{1} << 61, 3), TransportError, "pieces in a head");
  CHECK_THROWS(Message(table({3, 4}), 2, 6), TransportError, "exceed 6 bytes");
  CHECK_THROWS(Message(table({~0ull, 4}), 2, 3), TransportError, "exceed 3 bytes");
  CHECK_THROWS(Message(table({3}), 1, 4), TransportError, "1 bytes early");
}

}  // namespace
}  // namespace pycomm
