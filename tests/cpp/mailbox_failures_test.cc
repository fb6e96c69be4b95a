// Mailboxes in trouble: what is given up, torn, forged, lost or unread.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "mail.h"

namespace pycomm {
namespace {

TEST(mailbox_a_message_given_up_before_it_goes_breaks_nothing_and_after_that_the_communicator) {
  std::atomic<bool> out{false}, broken{false};
  run_engines(2, kInline, [&](const std::shared_ptr<Communicator>& world) {
    const auto group = world->subgroup(1, world->rank(), {0, 1}, world->segment_bytes());
    Mailbox box(group, 7);
    if (world->rank() == 0) {
      for (int i = 0; i < 64; ++i) wait(*group, send(box, 1, "x", {}));
      const auto waiting = send(box, 1, "never goes", {});
      waiting->abandon("interrupted");
      CHECK_THROWS(wait(*group, waiting), Aborted, "interrupted");
      CHECK(!group->failure());
      barrier(*world);
      while (!out) std::this_thread::yield();
      // Rank 1 is in no call: the message is announced, and its first segments are posted.
      Mailbox other(group, 8);
      CHECK_THROWS(wait(*group, send(other, 1, "x", pattern(100000, 0), 0.02)), Timeout,
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

Bytes packed(const MailFrame& frame) {
  Bytes bytes(sizeof(frame));
  std::memcpy(bytes.data(), &frame, sizeof(frame));
  return bytes;
}

// Random bytes where a peer's frames belong: errors, no crash, no hang.
TEST(mailbox_refuses_torn_frames) {
  run_engines(2, kInline, [](const std::shared_ptr<Communicator>& communicator) {
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
      for (std::size_t i = 8; i < std::min<std::size_t>(frame.size(), 12); ++i) frame[i] = {};  // frames read
      try {
        service.frame(1, frame);
      } catch (const TransportError&) {
        ++refused;
      }
    }
    CHECK(refused > 10000);
    using Type = MailFrame::Type;
    CHECK_THROWS(service.frame(1, packed({.type = Type{9}})), TransportError, "unknown type 9");
    CHECK_THROWS(service.frame(1, packed({.type = Type::credit, .count = 1})), TransportError,
                 "received more");
    CHECK_THROWS(
        service.frame(1, packed({.type = Type::announcement, .head_bytes = ~0ull, .segment_bytes = 1})),
        TransportError, "no room for a message");
    CHECK_THROWS(service.frame(1, packed({.type = Type::receipt, .read = 1})), TransportError,
                 "rank 1 has read mailbox frame 1; it was sent 0 to 0");
    CHECK_THROWS(service.frame(1, Bytes(39)), TransportError, "torn mailbox frame of 39 bytes");
    barrier(*communicator);
  });
}

TEST(mailbox_an_announcement_beyond_its_credit_takes_no_memory) {
  run_engines(2, kInline, [](const std::shared_ptr<Communicator>& communicator) {
    barrier(*communicator);
    if (communicator->rank() == 0) {
      auto& service = communicator->engine().driver().service<MailService>();
      MailFrame frame{.type = MailFrame::Type::announcement, .segment_bytes = 1};
      frame.head_bytes = kMailBytes;
      service.frame(1, packed(frame));
      frame.head_bytes = std::uint64_t{1} << 46;
      CHECK_THROWS(service.frame(1, packed(frame)), TransportError, "beyond its credit");
      CHECK(!communicator->failure());
    }
    barrier(*communicator);
  });
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // theirs is not std::bad_alloc
TEST(mailbox_a_head_that_memory_is_too_small_for_breaks_its_communicator_alone) {
  run_engines(2, kInline, [](const std::shared_ptr<Communicator>& world) {
    const auto group = world->subgroup(1, world->rank(), {0, 1}, world->segment_bytes());
    barrier(*world);
    if (world->rank() == 0) {
      auto& service = world->engine().driver().service<MailService>();
      MailFrame frame{.type = MailFrame::Type::announcement, .context = 1, .segment_bytes = 1};
      frame.head_bytes = std::uint64_t{1} << 46;
      service.frame(1, packed(frame));
      CHECK_THROWS(Mailbox(group, 0).take(1), Error, "from rank 1: no memory for a head of 70368744177664");
    } else {
      Mailbox box(group, 0);
      CHECK_THROWS(receive(box), Error, "no memory for a head");
    }
    CHECK(!world->failure());
    barrier(*world);
  });
}
#endif

// Of so many receives each says that too little came.
class Shrinking final : public Transport {
 public:
  std::string address() const override { return ""; }
  bool reaches(int, const std::string&) override { return true; }
  Pacing pacing(int) const override { return {}; }
  Ticket post_send(int, Tag, std::span<const std::byte>) override { return posted++; }
  Ticket post_recv(int, Tag, std::span<std::byte>) override { return posted++; }
  std::optional<std::size_t> poll(Ticket) override { return 1; }
  bool cancel(Ticket) override { return true; }
  void post_control(int, std::span<const std::byte>) override {}
  bool poll_control(ControlFrame*) override { return false; }
  Ticket posted = 0;
};

TEST(mailbox_nothing_more_is_posted_for_a_broken_message) {
  struct Owner {
    Cutter<std::span<std::byte>> cutter;
    std::uint32_t sequence = 0;
    std::size_t segment_bytes = 8;
    std::size_t bytes_left = 0;
    bool broken = false;
    std::uint32_t context() const { return 0; }
  };
  Shrinking transport;
  Bytes memory(80);
  const auto sick = std::make_shared<Owner>(), well = std::make_shared<Owner>();
  sick->cutter.parts = {memory};
  well->cutter.parts = {std::span(memory).first(24)};
  MailStream<Owner> stream;
  stream.push(sick);
  std::vector<std::string> reasons;
  const auto post = [&](Tag tag, auto segment) { return transport.post_recv(1, tag, segment); };
  const auto known = [](const Owner&) { return true; };
  const auto broken = [&](const Owner&, const std::string& why) { reasons.push_back(why); };
  CHECK(stream.post(4, post, known, broken));
  CHECK_EQ(transport.posted, Ticket{4});
  CHECK(stream.poll(transport, [](Owner&) {}, broken));
  CHECK(sick->broken && reasons == std::vector<std::string>{"1 bytes of a segment of 8"});
  CHECK(!stream.post(4, post, known, broken));
  CHECK_EQ(transport.posted, Ticket{4});
  stream.push(well);
  CHECK(stream.post(6, post, known, broken));  // three are in flight still
  CHECK_EQ(transport.posted, Ticket{7});
}

TEST(mailbox_a_message_abandoned_on_a_dropped_communicator_does_not_block_the_pair) {
  for (const Options& options : kWays) {
    run_engines(2, options, [&](const std::shared_ptr<Communicator>& world) {
      auto group = world->subgroup(1, world->rank(), {0, 1}, world->segment_bytes());
      Mailbox all(world, 0);
      if (world->rank() == 1) group.reset();
      barrier(*world);
      if (world->rank() == 0) {
        Mailbox box(group, 7);
        const auto work = send(box, 1, "x", pattern(4'000'000, 0));
        box.poke();  // announced, and its first segments are posted
        if (!options.progress_thread)
          std::this_thread::sleep_for(std::chrono::milliseconds(5));  // it is seen
        group->abort("enough");
        CHECK_THROWS(wait(*group, work), Aborted, "enough");
        wait(*world, send(all, 1, "after", pattern(100'000, 0), 10.0));
      } else {
        CHECK_EQ(next_head(all, 0), "after");
      }
      barrier(*world);
    });
  }
}

// Passes, until it is so.
void await(Mailbox& box, const std::function<bool()>& done) {
  const auto until = Clock::now() + std::chrono::seconds(20);
  while (!done() && Clock::now() < until) {
    box.poke();
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  CHECK(done());
}

TEST(mailbox_unread_mail_goes_with_its_communicator_and_when_that_breaks) {
  run_engines(1, kInline, [](const std::shared_ptr<Communicator>& world) {
    Mailbox all(world, 0);
    auto& boxes = world->engine().driver().service<MailService>().boxes();
    for (std::uint32_t context = 1; context < 10; ++context) {
      auto group = world->subgroup(context, 0, {0}, world->segment_bytes());
      {
        Mailbox box(group, 7);
        for (int i = 0; i < 3; ++i) wait(*group, send(box, 0, "unread", pattern(10'000, i)));
        CHECK(boxes.hold_mail());
      }
      if (context % 2)
        group.reset();
      else
        group->abort("enough");
      await(all, [&] { return !boxes.hold_mail(); });
    }
    wait(*world, send(all, 0, "kept", {}));
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    all.poke();
    CHECK_EQ(next_head(all), "kept");
  });
}

TEST(mailbox_mail_that_comes_before_its_communicator_is_kept) {
  std::atomic<bool> sent{false};
  run_engines(2, kInline, [&](const std::shared_ptr<Communicator>& world) {
    Mailbox all(world, 0);
    if (world->rank() == 0) {
      const auto group = world->subgroup(3, 0, {0, 1}, world->segment_bytes());
      Mailbox box(group, 7);
      const auto small = send(box, 1, "small", {}), large = send(box, 1, "large", pattern(10'000, 0));
      await(box, [&] { return large->done(); });
      wait(*group, large);
      sent = true;
      return barrier(*world);
    }
    const auto other = world->subgroup(1, 0, {1}, world->segment_bytes());
    await(all, [&] { return sent.load(); });
    for (int i = 0; i < 5; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      all.poke();
    }
    Mailbox box(world->subgroup(3, 1, {0, 1}, world->segment_bytes()), 7);
    CHECK_EQ(next_head(box), "small");
    CHECK(joined(*receive(box).message) == pattern(10'000, 0));
    barrier(*world);
    CHECK_THROWS(world->subgroup(2, 0, {1}, world->segment_bytes()), InvalidArgument, "context 2 after 3");
  });
}

TEST(mailbox_credit_for_a_communicator_that_the_sender_has_dropped_is_no_error) {
  run_engines(2, kInline, [](const std::shared_ptr<Communicator>& world) {
    Mailbox all(world, 0);
    auto group = world->subgroup(1, world->rank(), {0, 1}, world->segment_bytes());
    if (world->rank() == 0) {
      {
        Mailbox box(group, 7);
        for (int i = 0; i < 64; ++i) wait(*group, send(box, 1, "x", {}));
      }
      group.reset();
      for (int i = 0; i < 5; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        wait(*world, send(all, 1, "awake", {}));
      }
      barrier(*world);
      CHECK_EQ(next_head(all), "after the credit");
    } else {
      Mailbox box(group, 7);
      barrier(*world);
      for (int i = 0; i < 64; ++i) CHECK_EQ(next_head(box), "x");
      for (int i = 0; i < 5; ++i) CHECK_EQ(next_head(all), "awake");
      wait(*world, send(all, 0, "after the credit", {}));
    }
    barrier(*world);
    CHECK(!world->failure());
  });
}

// A thread that drives until `ended` says that another, which sleeps beside it, has been woken.
void check_woken_beside_a_driver(Communicator& communicator, const std::function<void()>& sleep,
                                 const std::function<void()>& disturb) {
  std::atomic<int> asked{0};
  std::atomic<bool> ended{false};
  bool woken = false;
  std::thread driver([&] {
    woken =
        communicator.engine().driver().wait([&] { return ++asked > 0 && ended; }, std::chrono::seconds(20));
  });
  while (asked < 10) std::this_thread::yield();
  std::thread sleeper([&] {
    sleep();
    ended = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  disturb();
  sleeper.join();
  driver.join();
  CHECK(woken);
}

TEST(mailbox_who_sleeps_beside_the_driver_hears_of_a_timeout) {
  run_engines(1, kInline, [](const std::shared_ptr<Communicator>& communicator) {
    Mailbox box(communicator, 0);
    for (int i = 0; i < 64; ++i) wait(*communicator, send(box, 0, "", {}));
    const auto work = send(box, 0, "no credit", {}, 0.05);
    check_woken_beside_a_driver(*communicator, [&] { communicator->wait(*work, 60.0); }, [] {});
    CHECK_THROWS(wait(*communicator, work), Timeout, "rank 0 has not received 64 earlier messages");
  });
}

TEST(mailbox_who_sleeps_beside_the_driver_hears_that_the_communicator_broke) {
  run_engines(1, kInline, [](const std::shared_ptr<Communicator>& communicator) {
    Mailbox box(communicator, 0);
    check_woken_beside_a_driver(
        *communicator, [&] { box.wait(0, 60.0); }, [&] { communicator->abort("enough"); });
    CHECK_THROWS(box.take(0), Aborted, "enough");
  });
}

TEST(mailbox_after_all_others_have_left_a_message_to_oneself_is_still_waited_for) {
  run_engines(2, kInline, [](const std::shared_ptr<Communicator>& communicator) {
    Mailbox box(communicator, 0);
    if (communicator->rank() == 1) return;
    CHECK_THROWS(receive(box), Aborted, "all other ranks have left");
    const auto work = send(box, 0, "mine", {});  // not yet looked at by any pass
    CHECK(!box.take(Mailbox::kAnyone));
    CHECK_EQ(next_head(box), "mine");
    wait(*communicator, work);
    CHECK_THROWS(receive(box), Aborted, "all other ranks have left");
    std::thread other([&] { wait(*communicator, send(box, 0, "from another thread", {})); });
    const Delivery delivery = receive(box, 0);  // named: not in vain
    other.join();
    CHECK_EQ(delivery.message->head(), "from another thread");
  });
}

}  // namespace
}  // namespace pycomm
