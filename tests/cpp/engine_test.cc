// The engine with ranks as threads: what the sanitizers run. Conformance of values at large is
// tests/conformance.
#include <atomic>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/bucketer.h"
#include "engines.h"

namespace pycomm {
namespace {

void check_every_all_reduce(const Options& options) {
  for (const int size : {1, 2, 3, 4, 5, 8}) {
    if (!options.nodes.empty() && size != std::ssize(options.nodes)) continue;
    run_engines(size, options, [&](const std::shared_ptr<Communicator>& communicator) {
      for (const Algorithm* algorithm : algorithms_for(Collective::all_reduce)) {
        if (algorithm->supports && !algorithm->supports(size)) continue;
        const bool one_node = is_mapped(options.transport) && communicator->nodes().size() == 1;
        if (algorithm->mapped && !one_node && size > 1) continue;
        for (const char* codec : {"none", "fp16", "bf16"}) {
          if (!algorithm->lossy_codecs && std::string(codec) != "none") continue;
          for (const std::int64_t count : {0, 1, size - 1, size + 1, 997, 4096}) {
            auto values = contribution(communicator->rank(), count);
            Call call = all_reduce(view_of(values));
            call.algorithm = short_name(*algorithm);
            call.codec = codec;
            wait(*communicator, communicator->submit(std::move(call)));
            CHECK(values == sum_of_contributions(size, count));
          }
        }
      }
    });
  }
}

TEST(engine_all_reduces_by_every_algorithm_copying) {
  check_every_all_reduce({});
}
TEST(engine_all_reduces_by_every_algorithm_mapped) {
  check_every_all_reduce({.transport = "inproc_mapped"});
}
TEST(engine_all_reduces_by_every_algorithm_in_shared_memory) {
  check_every_all_reduce({.transport = "shm"});
}
TEST(engine_all_reduces_by_every_algorithm_on_several_nodes) {
  for (const std::vector<int>& nodes :
       {std::vector{0, 0, 1}, {0, 1, 0, 1}, {0, 0, 0, 1, 1}, {0, 1, 2, 0, 1, 0, 0, 2}})
    for (const char* transport : {"inproc_mapped", "shm"})
      check_every_all_reduce({.transport = transport, .nodes = nodes});
}
TEST(engine_all_reduces_with_a_progress_thread) {
  check_every_all_reduce({.transport = "inproc_mapped", .progress_thread = true});
}

TEST(engine_runs_many_operations_at_once) {
  for (const bool progress_thread : {false, true}) {
    run_engines(4, {.progress_thread = progress_thread},
                [](const std::shared_ptr<Communicator>& communicator) {
                  std::vector<std::vector<float>> values;
                  std::vector<std::shared_ptr<Work>> works;
                  for (int i = 0; i < 50; ++i)
                    values.push_back(contribution(communicator->rank(), 100 + 37 * i));
                  for (auto& vector : values)
                    works.push_back(communicator->submit(all_reduce(view_of(vector))));
                  for (int i = 49; i >= 0; --i) {
                    wait(*communicator, works[i]);
                    CHECK(values[i] == sum_of_contributions(4, 100 + 37 * i));
                  }
                });
  }
}

// Rank 0 does A then B from two threads, rank 1 B then A.
TEST(engine_keeps_communicators_independent) {
  for (const bool progress_thread : {false, true}) {
    run_engines(2, {.progress_thread = progress_thread}, [](const std::shared_ptr<Communicator>& a) {
      const auto b = a->subgroup(1, a->rank(), {0, 1}, a->segment_bytes());
      for (int round = 0; round < 20; ++round) {
        const auto use = [](Communicator& communicator) {
          auto values = contribution(communicator.rank(), 3000);
          wait(communicator, communicator.submit(all_reduce(view_of(values))));
          CHECK(values == sum_of_contributions(2, 3000));
        };
        std::exception_ptr error;
        std::thread other([&] {
          try {
            use(a->rank() == 0 ? *a : *b);
          } catch (...) {
            error = std::current_exception();
          }
        });
        use(a->rank() == 0 ? *b : *a);
        other.join();
        if (error) std::rethrow_exception(error);
      }
    });
  }
}

TEST(engine_times_out_naming_collective_peer_and_stage) {
  run_engines(3, {}, [](const std::shared_ptr<Communicator>& communicator) {
    if (communicator->rank() == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      return;
    }
    auto values = contribution(0, 100);
    Call call = all_reduce(view_of(values));
    call.algorithm = "ring";
    call.timeout_s = 0.1;
    const auto work = communicator->submit(std::move(call));
    try {
      wait(*communicator, work);
      CHECK(false);
    } catch (const Error& error) {
      const std::string what = error.what();
      CHECK(error.kind() == ErrorKind::timeout);
      CHECK(what.find("all_reduce(f32 x 100") != std::string::npos);
      CHECK(what.find("rank ") != std::string::npos && what.find("in stage ") != std::string::npos);
    }
    auto again = contribution(0, 1);
    CHECK_THROWS(communicator->submit(all_reduce(view_of(again))), Timeout, "all_reduce(f32 x 100");
  });
}

TEST(engine_reports_a_mismatch_on_every_rank_and_spares_other_communicators) {
  run_engines(3, {}, [](const std::shared_ptr<Communicator>& communicator) {
    const auto other =
        communicator->subgroup(1, communicator->rank(), {0, 1, 2}, communicator->segment_bytes());
    auto values = contribution(0, communicator->rank() == 1 ? 10 : 11);
    const auto work = communicator->submit(all_reduce(view_of(values)));
    try {
      wait(*communicator, work);
      CHECK(false);
    } catch (const MismatchError& error) {
      const std::string what = error.what();
      CHECK(what.find("f32 x 10,") != std::string::npos);
      CHECK(what.find("f32 x 11,") != std::string::npos);
    }
    auto fine = contribution(communicator->rank(), 500);
    wait(*other, other->submit(all_reduce(view_of(fine))));
    CHECK(fine == sum_of_contributions(3, 500));
  });
}

TEST(engine_gives_up_an_abandoned_operation_and_its_peers_hear_of_it) {
  run_engines(2, {}, [](const std::shared_ptr<Communicator>& communicator) {
    auto values = contribution(0, 5000);
    if (communicator->rank() == 0) {
      const auto work = communicator->submit(all_reduce(view_of(values)));
      work->abandon("interrupted");
      CHECK_THROWS(wait(*communicator, work), Aborted, "interrupted");
    } else {
      CHECK_THROWS(wait(*communicator, communicator->submit(all_reduce(view_of(values)))), Aborted,
                   "interrupted");
    }
  });
}

TEST(engine_closes_under_waiting_threads) {
  for (const bool progress_thread : {false, true}) {
    run_engines(2, {.progress_thread = progress_thread},
                [](const std::shared_ptr<Communicator>& communicator) {
                  if (communicator->rank() == 1) return;
                  auto values = contribution(0, 5000);
                  const auto work = communicator->submit(all_reduce(view_of(values)));
                  std::atomic<bool> aborted{false};
                  std::thread waiter([&] {
                    try {
                      wait(*communicator, work);
                    } catch (const Aborted&) {
                      aborted = true;
                    }
                  });
                  std::this_thread::sleep_for(std::chrono::milliseconds(20));
                  communicator->engine().close();
                  waiter.join();
                  CHECK(aborted);
                });
  }
}

TEST(engine_reduces_buckets_in_order_whatever_the_order_of_gradients) {
  for (const bool progress_thread : {false, true}) {
    run_engines(3, {.progress_thread = progress_thread},
                [](const std::shared_ptr<Communicator>& communicator) {
                  std::vector<float> first(1000);
                  std::vector<float> second(600);
                  Bucketer bucketer(communicator, {view_of(first), view_of(second)},
                                    {{0, 0, 500}, {0, 500, 500}, {1, 0, 600}}, {}, nullptr);
                  for (int round = 0; round < 5; ++round) {
                    auto gradient = contribution(communicator->rank(), 500);
                    auto last = contribution(communicator->rank(), 600);
                    // Slot 1 comes from rank 0 alone; the second bucket is full first.
                    bucketer.put(2, view_of(last), 0.5);
                    if (communicator->rank() == 0) bucketer.put(1, view_of(gradient), 0.5);
                    bucketer.put(0, view_of(gradient), 0.5);
                    bucketer.flush(0.5);
                    for (const auto& work : bucketer.works()) wait(*communicator, work);
                    bucketer.finish_round();
                    auto expected = sum_of_contributions(3, 600);
                    for (float& value : expected) value *= 0.5f;
                    CHECK(second == expected);
                    expected = sum_of_contributions(3, 500);
                    for (int i = 0; i < 500; ++i) {
                      CHECK_EQ(first[i], expected[i] * 0.5f);
                      CHECK_EQ(first[500 + i], static_cast<float>(i % 11) * 0.5f);
                    }
                    CHECK((bucketer.used() == std::vector<std::uint8_t>{1, 1, 1}));
                  }
                });
  }
}

TEST(engine_serves_sixty_four_ranks) {
  run_engines(64, {}, [](const std::shared_ptr<Communicator>& communicator) {
    for (const char* algorithm : {"recursive_doubling", "halving_doubling", "direct"}) {
      auto values = contribution(communicator->rank(), 200);
      Call call = all_reduce(view_of(values));
      call.algorithm = algorithm;
      wait(*communicator, communicator->submit(std::move(call)));
      CHECK(values == sum_of_contributions(64, 200));
    }
  });
}

}  // namespace
}  // namespace pycomm
