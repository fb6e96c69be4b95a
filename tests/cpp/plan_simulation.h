// Runs the plans of all ranks on numbers, one step at a time in a random order that plan.h allows, as plainly
// as possible and without plan/schedule.h: what verify() accepts must come out right here.
//
// A chunk is one number modulo 2^64 and memory begins as noise. Taking a contribution multiplies by 3 and
// `final` by 5, so that either of them missing or doubled shows. The lossy codec drops the low bits.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "plan/plan.h"

struct SimulationOptions {
  bool in_place = false;
  bool lossy = false;        // what travels is rounded
  bool synchronous = false;  // a send waits for its receive; else it leaves as soon as it may
};

class Simulation {
 public:
  using Number = std::uint64_t;

  Simulation(pycomm::Collective collective, const std::vector<pycomm::Plan>& plans, SimulationOptions options,
             std::mt19937& random)
      : options_(options), reduces_(pycomm::reduces(collective)), random_(random) {
    for (std::size_t rank = 0; rank < plans.size(); ++rank) add_rank(static_cast<int>(rank), plans[rank]);
  }

  void provide(int rank, int chunk, Number value) { place(rank, pycomm::kInput, chunk) = value; }
  Number output(int rank, int chunk) { return place(rank, pycomm::kOutput, chunk); }

  // Runs what can run but the steps of rank `frozen`.
  void run(int frozen = -1) {
    for (std::vector<int> can = runnable(frozen); !can.empty(); can = runnable(frozen))
      start(can[random_() % can.size()]);
  }

  bool finished(int rank) const {
    for (const Task& task : tasks_)
      if (task.rank == rank && !task.done) return false;
    return true;
  }

 private:
  struct Task {
    int rank, stage;
    pycomm::Step step;
    std::vector<int> after;
    bool done = false;
  };
  using Place = std::array<int, 3>;  // rank, buffer, chunk

  Place where(int rank, pycomm::Buffer buffer, int chunk) const {
    if (pycomm::is_scratch(buffer)) return {rank, buffer.id, 0};
    return {rank, options_.in_place ? pycomm::kOutput.id : buffer.id, chunk};
  }

  Number& place(int rank, pycomm::Buffer buffer, int chunk) {
    return memory_.try_emplace(where(rank, buffer, chunk), noise()).first->second;
  }

  Number noise() { return (Number{random_()} << 32) | random_(); }

  void touch(const Task& task, std::vector<Place>& reads, std::vector<Place>& writes) const {
    using pycomm::Op;
    const pycomm::Step& step = task.step;
    const auto at = [&](pycomm::Buffer buffer) { return where(task.rank, buffer, step.chunk); };
    if (step.op != Op::meet && step.op != Op::recv && step.op != Op::reduce) reads.push_back(at(step.src));
    for (pycomm::Buffer source : step.sources) reads.push_back(at(source));
    if (step.op == Op::send && step.publish) writes.push_back(at(step.src));
    if (step.op != Op::meet && step.op != Op::send && step.op != Op::store_to) writes.push_back(at(step.dst));
  }

  static bool meet_in(const std::vector<Place>& a, const std::vector<Place>& b) {
    for (const Place& left : a)
      for (const Place& right : b)
        if (left == right) return true;
    return false;
  }

  bool must_wait(const Task& later, const Task& earlier) const {
    using pycomm::Op;
    const pycomm::Step &a = earlier.step, &b = later.step;
    if (a.op == Op::send && b.op == Op::send && a.peers == b.peers) return true;
    const auto receives = [](Op op) { return op == Op::recv || op == Op::recv_reduce; };
    if (receives(a.op) && receives(b.op) && a.peers == b.peers) return true;
    if (earlier.stage == later.stage)
      return a.op == Op::recv_reduce && b.op == Op::recv_reduce && a.dst == b.dst;
    if (a.op == Op::meet || b.op == Op::meet) return true;
    std::vector<Place> reads_a, writes_a, reads_b, writes_b;
    touch(earlier, reads_a, writes_a);
    touch(later, reads_b, writes_b);
    return meet_in(writes_a, reads_b) || meet_in(writes_a, writes_b) || meet_in(reads_a, writes_b);
  }

  void add_rank(int rank, const pycomm::Plan& plan) {
    const int first = static_cast<int>(tasks_.size());
    for (std::size_t stage = 0; stage < plan.stages.size(); ++stage)
      for (const pycomm::Step& step : plan.stages[stage].steps) {
        Task task{rank, static_cast<int>(stage), step, {}};
        for (int i = first; i < static_cast<int>(tasks_.size()); ++i)
          if (must_wait(task, tasks_[i])) task.after.push_back(i);
        tasks_.push_back(std::move(task));
      }
  }

  bool ready(const Task& task) const {
    if (task.done) return false;
    for (int earlier : task.after)
      if (!tasks_[earlier].done) return false;
    return true;
  }

  // The ready task of `rank` that sends to `peer` or receives from it, or meets it; -1 if there is none.
  int ready_end(int rank, int peer, bool (*wanted)(pycomm::Op)) const {
    for (std::size_t i = 0; i < tasks_.size(); ++i) {
      const auto& peers = tasks_[i].step.peers;
      if (tasks_[i].rank == rank && wanted(tasks_[i].step.op) && ready(tasks_[i]) &&
          std::count(peers.begin(), peers.end(), peer) > 0)
        return static_cast<int>(i);
    }
    return -1;
  }

  static bool is_receive(pycomm::Op op) { return op == pycomm::Op::recv || op == pycomm::Op::recv_reduce; }
  static bool is_meet(pycomm::Op op) { return op == pycomm::Op::meet; }

  bool can_start(const Task& task) {
    if (!ready(task)) return false;
    if (is_receive(task.step.op)) return !channels_[{task.step.peers[0], task.rank}].empty();
    if (task.step.op == pycomm::Op::send && options_.synchronous)
      return ready_end(task.step.peers[0], task.rank, is_receive) >= 0;
    if (is_meet(task.step.op))
      for (int peer : task.step.peers)
        if (ready_end(peer, task.rank, is_meet) < 0) return false;
    return true;
  }

  std::vector<int> runnable(int frozen) {
    std::vector<int> out;
    for (std::size_t i = 0; i < tasks_.size(); ++i)
      if (tasks_[i].rank != frozen && can_start(tasks_[i])) out.push_back(static_cast<int>(i));
    return out;
  }

  Number coded(Number value) const { return options_.lossy ? value & ~Number{0xfffff} : value; }

  Number read(int rank, pycomm::Buffer buffer, int chunk) {
    return place(rank, buffer, chunk) * (reduces_ && buffer == pycomm::kInput ? 3 : 1);
  }

  void start(int index) {
    using pycomm::Op;
    Task& task = tasks_[index];
    const pycomm::Step& step = task.step;
    const int rank = task.rank;
    task.done = true;
    if (step.op == Op::send) {
      const Number message = coded(read(rank, step.src, step.chunk));
      if (step.publish) place(rank, step.src, step.chunk) = message;
      channels_[{rank, step.peers[0]}].push_back(message);
      if (options_.synchronous) start(ready_end(step.peers[0], rank, is_receive));
    } else if (step.op == Op::meet) {
      for (int peer : step.peers) tasks_[ready_end(peer, rank, is_meet)].done = true;
    } else if (step.op == Op::store_to) {
      for (int peer : step.peers) place(peer, step.dst, step.chunk) = read(rank, step.src, step.chunk);
    } else {
      place(rank, step.dst, step.chunk) = result_of(rank, step) * (step.final ? 5 : 1);
    }
  }

  Number result_of(int rank, const pycomm::Step& step) {
    using pycomm::Op;
    Number sum = 0;
    if (step.op == Op::copy || step.op == Op::recv_reduce) sum += read(rank, step.src, step.chunk);
    for (pycomm::Buffer source : step.sources) sum += read(rank, source, step.chunk);
    if (is_receive(step.op)) {
      auto& channel = channels_[{step.peers[0], rank}];
      sum += channel.front();
      channel.pop_front();
    } else {
      for (int peer : step.peers) sum += read(peer, step.src, step.chunk);
    }
    return sum;
  }

  const SimulationOptions options_;
  const bool reduces_;
  std::mt19937& random_;
  std::vector<Task> tasks_;
  std::map<Place, Number> memory_;
  std::map<std::pair<int, int>, std::deque<Number>> channels_;
};
