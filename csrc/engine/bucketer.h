// Fuses gradients into buckets: flat buffers that are reduced as one. A slot is one gradient's place in a
// bucket.
//
// A round: every slot is put (copied into its place) or marked (it already lies there), in any order; flush()
// zeroes the slots that were not, launches what is not launched, and reduces which slots anybody filled;
// wait() ends the round. Bucket k is launched after bucket k-1, so that all ranks launch in one order without
// asking each other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/communicator.h"

namespace pycomm {

// Threads: one at a time. Only wait() blocks, and it belongs to the caller: it waits for works().
class Bucketer {
 public:
  struct Slot {
    int bucket = 0;
    std::int64_t offset = 0;  // elements
    std::int64_t count = 0;
  };
  struct Options {
    ReduceOp op = ReduceOp::sum;
    std::string codec;
    std::string algorithm;
    Order order = Order::any;
    bool launch_when_full = true;  // false: only launch() and flush() launch
    bool soon = true;              // a launched bucket advances by itself; false: when somebody waits
  };

  // The keepalive holds the buffers' memory.
  Bucketer(std::shared_ptr<Communicator> communicator, std::vector<View> buffers, std::vector<Slot> slots,
           Options options, std::shared_ptr<void> keepalive);

  // Both return how many buckets are full in order: all of 0 ... n-1.
  int put(int slot, const View& gradient, double scale);
  int mark(int slot, double scale);
  void launch(int bucket, double scale);
  void flush(double scale);
  // After all works are done: readies the next round.
  void finish_round();
  // Forgets an unfinished round in which nothing was launched.
  void reset();

  bool filled(int slot) const;
  int launched() const { return launched_; }
  // Of this round, by bucket, then that of the used bits; those not yet launched are missing.
  const std::vector<std::shared_ptr<Work>>& works() const { return works_; }
  // By slot, of the last finished round: 1 if any rank filled it.
  const std::vector<std::uint8_t>& used() const { return used_; }

 private:
  void check_open(const char* call) const;
  const Slot& checked(int slot, const char* call) const;
  Call reduction_of(int bucket, double scale) const;
  std::shared_ptr<Work> submit(Call call);

  const std::shared_ptr<Communicator> communicator_;
  const std::vector<View> buffers_;
  const std::vector<Slot> slots_;
  const Options options_;
  const std::shared_ptr<void> keepalive_;
  std::vector<std::uint8_t> filled_;                    // by slot, this round
  std::shared_ptr<std::vector<std::uint8_t>> anybody_;  // the same over all ranks, while it is reduced
  std::vector<std::uint8_t> used_;
  std::vector<int> missing_;  // slots to come, by bucket
  int full_ = 0;              // buckets 0 ... full_-1 are full
  int launched_ = 0;
  std::vector<std::shared_ptr<Work>> works_;
};

}  // namespace pycomm
