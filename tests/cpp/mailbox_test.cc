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
#include "mail.h"

namespace pycomm {
namespace {

std::size_t size_of_message(int number) {
  constexpr std::size_t kSizes[] = {0, 1, 400, 480, 1023, 1024, 1025, 5000, 70000};
  return kSizes[number % std::size(kSizes)];
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
        for (const auto& work : works) wait(box.communicator(), work);
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
            wait(box.communicator(), send(box, to, std::to_string(i), pattern(size_of_message(i), i)));
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
      for (const auto& work : works) wait(box.communicator(), work);
      barrier(*communicator);
    });
  }
}

TEST(mailbox_serves_sixty_four_ranks) {
  run_engines(64, kInline, [](const std::shared_ptr<Communicator>& communicator) {
    Mailbox box(communicator, 0);
    if (communicator->rank() == 0) {
      long sum = 0;
      for (int i = 0; i < 63 * 20; ++i) sum += std::stol(receive(box).message->head());
      CHECK_EQ(sum, 63L * 64 / 2 * 20);
    } else {
      for (int i = 0; i < 20; ++i)
        wait(box.communicator(), send(box, 0, std::to_string(communicator->rank()), {}));
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
    run_engines(2, {.progress_thread = progress_thread, .segment_bytes = 1024},
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
