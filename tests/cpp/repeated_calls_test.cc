// Calls that are made again: what was prepared is used again, each run counts for itself, and threads that
// start and wait beside a progress thread see whole outcomes.
#include <thread>
#include <vector>

#include "check.h"
#include "engines.h"

namespace pycomm {
namespace {

Call all_reduce_of(std::vector<float>& values, ReduceOp op = ReduceOp::sum) {
  Call call = all_reduce(view_of(values));
  call.op = op;
  return call;
}

void run_again(Communicator& communicator, Call call) {
  auto prepared = communicator.prepare_again(std::move(call));
  wait(communicator, communicator.start(*prepared));
  communicator.keep(std::move(prepared));
}

}  // namespace

TEST(a_call_made_again_takes_what_was_prepared_and_another_one_does_not) {
  run_engines(1, {}, [](const std::shared_ptr<Communicator>& communicator) {
    std::vector<float> one(5), two(5);
    const auto prepared = [&](Call call) { return communicator->prepare_again(std::move(call)); };
    auto first = prepared(all_reduce_of(one));
    const Task* const task = first->task.get();
    CHECK(prepared(all_reduce_of(one))->task.get() != task);  // taken: nobody else gets it
    communicator->keep(std::move(first));
    CHECK(prepared(all_reduce_of(one, ReduceOp::max))->task.get() != task);
    CHECK(prepared(all_reduce_of(two))->task.get() != task);
    auto again = prepared(all_reduce_of(one));
    CHECK_EQ(again->task.get(), task);
  });
}

TEST(what_is_kept_holds_no_memory_of_the_caller) {
  run_engines(1, {}, [](const std::shared_ptr<Communicator>& communicator) {
    std::vector<float> values(5);
    for (int turn = 0; turn < 3; ++turn) {
      const auto memory = std::make_shared<int>(turn);
      Call call = all_reduce_of(values);
      call.keepalive = memory;
      auto prepared = communicator->prepare_again(std::move(call));
      wait(*communicator, communicator->start(*prepared));
      CHECK_EQ(memory.use_count(), 2, "turn ", turn);
      communicator->keep(std::move(prepared));
      CHECK_EQ(memory.use_count(), 1, "turn ", turn);
    }
  });
}

TEST(every_run_of_a_repeated_call_is_right_and_counts_its_own_bytes) {
  for (const char* transport : {"inproc", "inproc_mapped", "shm"}) {
    for (const bool progress_thread : {false, true}) {
      const Options options{.transport = transport, .progress_thread = progress_thread};
      run_engines(3, options, [](const std::shared_ptr<Communicator>& communicator) {
        std::vector<float> small(3), large(1001);
        std::int64_t sent = -1;
        for (int turn = 0; turn < 40; ++turn) {
          for (auto* values : {&small, &large}) {
            *values = contribution(communicator->rank() + turn, static_cast<std::int64_t>(values->size()));
            run_again(*communicator, all_reduce_of(*values, turn % 2 ? ReduceOp::max : ReduceOp::sum));
            if (turn % 2) continue;
            for (std::size_t i = 0; i < values->size(); ++i) {
              float sum = 0;
              for (int rank = 0; rank < 3; ++rank) sum += static_cast<float>((i + rank + turn) % 11);
              CHECK_EQ((*values)[i], sum, "turn ", turn, ", element ", i);
            }
          }
          const auto prepared = communicator->prepare(all_reduce_of(large));
          for (int run = 0; run < 2; ++run) {
            const auto work = communicator->start(prepared);
            wait(*communicator, work);
            CHECK(work->submitted() <= work->started() && work->started() <= work->finished());
            if (sent < 0) sent = work->bytes_sent();
            CHECK_EQ(work->bytes_sent(), sent);
          }
        }
      });
    }
  }
}

TEST(threads_start_their_calls_again_while_another_drives) {
  run_engines(2, {.transport = "shm", .progress_thread = true},
              [](const std::shared_ptr<Communicator>& communicator) {
                std::vector<std::shared_ptr<Communicator>> groups;
                for (std::uint32_t context : {1u, 2u})
                  groups.push_back(communicator->subgroup(context, communicator->rank(), {0, 1}, 256));
                std::vector<std::thread> threads;
                std::atomic<int> right{0};
                for (const auto& group : groups)
                  threads.emplace_back([&, group] {
                    std::vector<float> values(7);
                    const auto prepared = group->prepare(all_reduce_of(values));
                    for (int turn = 0; turn < 300; ++turn) {
                      values.assign(7, static_cast<float>(turn));
                      wait(*group, group->start(prepared));
                      right += values == std::vector<float>(7, static_cast<float>(2 * turn));
                    }
                  });
                for (auto& thread : threads) thread.join();
                CHECK_EQ(right, 600);
              });
}

}  // namespace pycomm
