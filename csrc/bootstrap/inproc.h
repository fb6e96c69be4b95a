// Where ranks that are threads of one process meet for the first time.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace pycomm {

// Shared by all ranks of one world, which outlives their bootstraps; its address is the handle "inproc_board"
// of an Environment. Any number of rounds, one after the other. A round that fails on one rank, or abort(),
// fails it on all, and every later one too: nobody waits for a rank that has given up.
//
// Threads: any; each rank is at the board at most once at a time.
class InprocBoard {
 public:
  explicit InprocBoard(int size);

  // As Bootstrap::exchange, for one rank.
  std::vector<std::string> exchange(int rank, const std::string& bytes, double timeout_s);
  // Fails the round in progress and all later ones with TransportError(why). The first cause stays.
  void abort(const std::string& why);

  int size() const { return static_cast<int>(here_.size()); }

 private:
  void give_up(const std::string& why);
  std::string missing() const;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Under the lock:
  std::string broken_;                // why, or empty
  std::uint64_t round_ = 0;           // completed ones
  std::vector<bool> here_;            // who has come to the round in progress
  std::vector<std::string> written_;  // their bytes
  // The bytes of the last completed round; the next cannot complete before all have read it.
  std::vector<std::string> result_;
};

}  // namespace pycomm
