// The exchange among threads. The one over MPI needs mpirun.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "bootstrap/bootstrap.h"
#include "bootstrap/inproc.h"
#include "check.h"
#include "core/error.h"

using namespace pycomm;

namespace {

std::unique_ptr<Bootstrap> at_board(InprocBoard& board, int rank) {
  const Environment environment{
      rank, board.size(), {{"inproc_board", reinterpret_cast<std::uintptr_t>(&board)}}};
  return Registry<BootstrapEntry>::instance().get("inproc", "bootstrap").create(environment);
}

std::string bytes_of(int rank, int round) {
  return std::string(rank + round, static_cast<char>('a' + rank % 26));
}

}  // namespace

TEST(bootstrap_gives_everyone_the_bytes_of_all_by_rank_in_every_round) {
  for (int size : {1, 2, 3, 5, 32}) {
    constexpr int kRounds = 20;
    InprocBoard board(size);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank)
      threads.emplace_back([&, rank] {
        const auto bootstrap = at_board(board, rank);
        for (int round = 0; round < kRounds; ++round) {
          const auto all = bootstrap->exchange(bytes_of(rank, round), 30);
          if (static_cast<int>(all.size()) != size) ++wrong;
          for (int peer = 0; peer < size; ++peer) wrong += all.at(peer) != bytes_of(peer, round);
        }
      });
    for (auto& thread : threads) thread.join();
    CHECK_EQ(wrong.load(), 0, "of ", size, " ranks");
  }
}

TEST(bootstrap_timeout_names_who_is_missing) {
  InprocBoard board(3);
  CHECK_THROWS(at_board(board, 1)->exchange("", 0.01), Timeout, "rank 1 waited 0.01 s for rank 0, 2");
}

TEST(bootstrap_timeout_of_one_fails_the_others) {
  InprocBoard board(4);
  std::string other;
  std::thread waits([&] {
    try {
      at_board(board, 2)->exchange("", 30);
    } catch (const TransportError& error) {
      other = error.what();
    }
  });
  // Rank 2 is in before rank 0 gives up, or is told on arrival; either way it does not wait for its 30 s.
  CHECK_THROWS(at_board(board, 0)->exchange("", 0.2), Timeout, "rank 0 waited 0.2 s for ");
  waits.join();
  CHECK(other.find("rank 0 waited") != std::string::npos);
  CHECK_THROWS(at_board(board, 1)->exchange("", 30), TransportError, "rank 0 waited");
}

TEST(bootstrap_abort_releases_those_who_wait) {
  InprocBoard board(2);
  std::string why;
  std::thread waits([&] {
    try {
      at_board(board, 0)->exchange("", 30);
    } catch (const TransportError& error) {
      why = error.what();
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  board.abort("rank 1 failed: no memory");
  board.abort("a later cause");
  waits.join();
  CHECK(why.find("rank 1 failed: no memory") != std::string::npos);
  CHECK_THROWS(at_board(board, 1)->exchange("", 30), TransportError, "rank 1 failed");
}

TEST(bootstrap_refuses_a_rank_that_is_not_of_this_world) {
  InprocBoard board(2);
  CHECK_THROWS(board.exchange(2, "", 1), InvalidArgument, "rank 2");
  CHECK_THROWS(board.exchange(-1, "", 1), InvalidArgument, "rank -1");
  CHECK_THROWS(InprocBoard(0), InvalidArgument, "0 ranks");
  const Environment three{0, 3, {{"inproc_board", reinterpret_cast<std::uintptr_t>(&board)}}};
  auto& entry = Registry<BootstrapEntry>::instance().get("inproc", "bootstrap");
  CHECK_THROWS(entry.create(three), InvalidArgument, "rank 0 of 3");
}

TEST(bootstrap_without_its_handle_is_not_available) {
  for (const BootstrapEntry* entry : Registry<BootstrapEntry>::instance().all())
    CHECK(!entry->create(Environment{}));
}

TEST(bootstrap_refuses_the_second_of_two_threads_that_claim_one_rank) {
  InprocBoard board(2);
  std::atomic<int> refused{0}, released{0};
  const auto claim = [&] {
    try {
      board.exchange(0, "", 30);
    } catch (const InvalidArgument&) {
      ++refused;
      board.abort("two claimed rank 0");
    } catch (const TransportError&) {
      ++released;
    }
  };
  std::thread one(claim), other(claim);
  one.join();
  other.join();
  CHECK_EQ(refused.load(), 1);
  CHECK_EQ(released.load(), 1);
}
