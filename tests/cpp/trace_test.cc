// The recorder: threads at once, full memory, what a slice looks like; and in an engine, for the sanitizers.
#include "core/trace.h"

#include <thread>

#include "check.h"
#include "core/error.h"
#include "engine/communicator.h"
#include "engine/thread_world.h"
#include "ranks.h"

namespace pycomm {
namespace {

Trace::Time at_ns(std::int64_t ns) {
  return Trace::Time(std::chrono::nanoseconds(ns));
}

std::int64_t count_of(const std::string& text, const std::string& part) {
  std::int64_t count = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(a_trace_that_is_off_records_nothing) {
  Trace trace;
  {
    const TraceSpan span(trace, "span");
  }
  TraceStalls stalls(trace);
  stalls.stuck();
  stalls.moved();
  CHECK(!trace.on());
  CHECK_EQ(trace.recorded(), 0);
  CHECK_EQ(trace.render(0, 10, 0, {}), "");
}

TEST(threads_record_at_once_until_the_memory_is_full) {
  constexpr int kThreads = 4;
  constexpr int kEach = 3000;
  constexpr std::int64_t kCapacity = 2 * 1024 + 7;  // blocks end within
  Trace trace;
  trace.start(kCapacity);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      trace.name_thread(text("thread ", i));
      for (int n = 0; n < kEach; ++n) trace.span("span", at_ns(n), at_ns(n + 1));
    });
  for (auto& thread : threads) thread.join();
  CHECK_EQ(trace.recorded(), kCapacity);
  CHECK_EQ(trace.dropped(), kThreads * kEach - kCapacity);
  CHECK_EQ(count_of(trace.render(0, kCapacity, 0, {}), "\"ph\":\"X\""), kCapacity);
  CHECK_EQ(count_of(trace.render(1000, 1050, 0, {}), "\"ph\":\"X\""), 50);
  CHECK_EQ(static_cast<int>(trace.threads().size()), kThreads);
}

TEST(an_open_span_is_recorded_although_the_trace_stops) {
  Trace trace;
  trace.start(10);
  {
    const TraceSpan span(trace, "open");
    trace.stop();
    const TraceSpan late(trace, "late");
  }
  CHECK_EQ(trace.recorded(), 1);
}

TEST(times_are_moved_to_the_common_clock) {
  Trace trace;
  trace.start(10);
  trace.span("a\"\n", at_ns(5'000'001'000), at_ns(5'000'002'500), "\"step\":3");
  const std::string event = trace.render(0, 1, 7, {5'000'000'000, 0.5});
  CHECK(event.find("\"ts\":0.500,\"dur\":0.750,\"name\":\"a\\\"\\u000a\",\"args\":{\"step\":3}}") !=
        std::string::npos);
  CHECK(event.starts_with(",\n{\"ph\":\"X\",\"pid\":7,"));
  trace.span("before zero", at_ns(4'999'999'000), at_ns(5'000'000'000));
  CHECK(trace.render(1, 2, 7, {5'000'000'000, 1.0}).find("\"ts\":-1.000,\"dur\":1.000") != std::string::npos);
}

TEST(an_operation_that_never_started_is_queued_to_its_end) {
  Trace trace;
  trace.start(10);
  TracedCall call{"all_reduce", "f32", "ring", "none", 1000, 4000, 2, 9, -1, 3};
  trace.operation(call, {at_ns(1000), {}, at_ns(4000)}, 0, "lost");
  const std::string events = trace.render(0, 1, 0, {});
  CHECK_EQ(count_of(events, "\"name\":\"all_reduce bucket 3 4 kB ring\""), 2);
  CHECK_EQ(count_of(events, "\"ts\":1.000"), 2);
  CHECK_EQ(count_of(events, "\"ts\":4.000"), 2);
  CHECK(events.find("\"error\":\"lost\"") != std::string::npos);
}

TEST(callers_and_progress_threads_record_operations_at_once) {
  constexpr int kRanks = 3;
  constexpr int kRounds = 40;
  ThreadWorld world(kRanks);
  run_ranks(kRanks, [&](int rank) {
    const auto engine = Engine::create({rank, kRanks, world.handles(), nullptr}, {}, true);
    Communicator communicator(engine, std::make_shared<Group>(0, rank, std::vector<int>{0, 1, 2}),
                              engine->segment_bytes());
    engine->trace().start(10'000);
    std::vector<float> values(100, 1.0f);
    for (int round = 0; round < kRounds; ++round) {
      Call call;
      call.collective = Collective::all_reduce;
      call.input = call.output = {reinterpret_cast<std::byte*>(values.data()), 100, DType::f32};
      call.op = ReduceOp::max;
      call.bucket = round;
      const auto work = communicator.submit(call);
      const TraceSpan waiting(engine->trace(), "wait", &work->call());
      while (!communicator.wait(*work, 1.0)) {
      }
    }
    engine->trace().stop();
    engine->close();
    const std::string events = engine->trace().render(0, 10'000, rank, {});
    CHECK_EQ(count_of(events, "\"ph\":\"b\""), 2 * kRounds);
    CHECK_EQ(count_of(events, "\"name\":\"wait\",\"args\":{\"collective\":\"all_reduce\""), kRounds);
    CHECK_EQ(count_of(events, "bucket 39 400 B"), 2);
    CHECK_EQ(engine->trace().dropped(), 0);
  });
}

TEST(a_trace_starts_once_and_with_memory) {
  Trace trace;
  CHECK_THROWS(trace.start(0), InvalidArgument, "expected at least 1");
  trace.start(1);
  CHECK_THROWS(trace.start(1), InvalidArgument, "started before");
}

}  // namespace
}  // namespace pycomm
