// Mapped plans on memory that peers cannot address, with ranks as threads: what the sanitizers run.
#include <algorithm>
#include <vector>

#include "check.h"
#include "engines.h"

namespace pycomm {
namespace {

constexpr std::int64_t kPart = 1201;  // elements: 19 segments of 256 bytes, a multiple of no ring of cells

std::vector<float> part(int from, int to) {
  std::vector<float> values(kPart);
  for (std::int64_t i = 0; i < kPart; ++i) values[i] = static_cast<float>((31 * from + 7 * to + i) % 97);
  return values;
}

void append(std::vector<float>& to, const std::vector<float>& values) {
  to.insert(to.end(), values.begin(), values.end());
}

// What rank `rank` gives or must get: part `to` of each rank `from`, all or its own.
std::vector<float> parts(int size, const std::function<std::vector<float>(int)>& part_of) {
  std::vector<float> out;
  for (int other = 0; other < size; ++other) append(out, part_of(other));
  return out;
}

std::vector<float> summed(int size, int to) {
  std::vector<float> out(kPart);
  for (int from = 0; from < size; ++from) {
    const std::vector<float> term = part(from, to);
    for (std::int64_t i = 0; i < kPart; ++i) out[i] += term[i];
  }
  return out;
}

struct Example {
  std::vector<float> input;
  std::vector<float> expected;
};

// Every rank's part `to` is that of (rank, to).
Example example(Collective collective, int rank, int size, int root) {
  const auto mine = [&](int to) { return part(rank, to); };
  const bool at_root = rank == root;
  const std::vector<float> nothing;
  switch (collective) {
    case Collective::all_reduce:
      return {parts(size, mine), parts(size, [&](int to) { return summed(size, to); })};
    case Collective::reduce_scatter:
      return {parts(size, mine), summed(size, rank)};
    case Collective::reduce:
      return {parts(size, mine), at_root ? parts(size, [&](int to) { return summed(size, to); }) : nothing};
    case Collective::all_gather:
      return {part(rank, 0), parts(size, [](int from) { return part(from, 0); })};
    case Collective::gather:
      return {part(rank, 0), at_root ? parts(size, [](int from) { return part(from, 0); }) : nothing};
    case Collective::scatter:
      return {at_root ? parts(size, mine) : nothing, part(root, rank)};
    case Collective::all_to_all:
      return {parts(size, mine), parts(size, [&](int from) { return part(from, rank); })};
    default:  // broadcast
      return {parts(size, mine), parts(size, [&](int to) { return part(root, to); })};
  }
}

// Memory of the heap or of this rank alone, at an odd element.
class Place {
 public:
  Place(PeerMemory& memory, std::size_t count, bool heap) : count_(count), plain_(heap ? 0 : count + 1) {
    if (heap) shared_ = memory.allocate((count + 1) * sizeof(float));
  }
  float* data() { return (shared_ ? reinterpret_cast<float*>(shared_.get()) : plain_.data()) + 1; }
  View view() {
    return {reinterpret_cast<std::byte*>(data()), static_cast<std::int64_t>(count_), DType::f32};
  }
  bool holds(const std::vector<float>& expected) {
    return expected.size() == count_ && std::equal(expected.begin(), expected.end(), data());
  }

 private:
  std::size_t count_;
  std::vector<float> plain_;
  std::shared_ptr<std::byte> shared_;
};

void check_mix(Communicator& communicator, const Algorithm& algorithm, int mix) {
  const int rank = communicator.rank(), size = communicator.size(), root = size - 1;
  PeerMemory& memory = *communicator.engine().router().any_peer_memory();
  const Collective collective = collective_of(algorithm);
  const Example given = example(collective, rank, size, root);
  Place input(memory, given.input.size(), mix >> rank & 1);
  Place output(memory, given.expected.size(), (mix >> rank & 1) != (mix >> size & 1));
  std::copy(given.input.begin(), given.input.end(), input.data());
  Call call;
  call.collective = collective;
  call.algorithm = short_name(algorithm);
  call.root = root;
  call.input = input.view();
  call.output = output.view();
  if (collective == Collective::broadcast) call.output = call.input;
  wait(communicator, communicator.submit(std::move(call)));
  Place& result = collective == Collective::broadcast ? input : output;
  CHECK_EQ(result.holds(given.expected), true, algorithm.name, ", mix ", mix);
}

}  // namespace

// Which ranks lend memory of theirs for the input (and, or only, for the output): none, some, all.
TEST(loans_serve_every_mapped_algorithm_on_any_mix_of_memory) {
  for (const int size : {2, 3}) {
    run_engines(size, {.transport = "shm", .heap_mb = 16}, [&](const auto& communicator) {
      for (const Algorithm* algorithm : Registry<Algorithm>::instance().all())
        for (int mix = 0; algorithm->mapped && mix < 2 << size; ++mix)
          check_mix(*communicator, *algorithm, mix);
    });
  }
}

TEST(loans_are_served_while_other_operations_run) {
  run_engines(2, {.transport = "shm", .progress_thread = true}, [](const auto& communicator) {
    std::vector<std::vector<float>> values;
    std::vector<std::shared_ptr<Work>> works;
    for (int i = 0; i < 8; ++i) values.push_back(contribution(communicator->rank(), 3000 + i));
    for (auto& vector : values) {
      Call call = all_reduce(view_of(vector));
      call.algorithm = "mapped";
      works.push_back(communicator->submit(std::move(call)));
    }
    for (const auto& work : works) wait(*communicator, work);
    for (int i = 0; i < 8; ++i) CHECK(values[i] == sum_of_contributions(2, 3000 + i));
  });
}

// Long enough for the results to be streamed past the caches.
TEST(results_larger_than_the_caches_are_right) {
  run_engines(2, {.transport = "shm", .segment_bytes = 1 << 17, .heap_mb = 64}, [](const auto& communicator) {
    constexpr std::int64_t kCount = (8 << 20) / 4 + 34;
    const int rank = communicator->rank();
    PeerMemory& memory = *communicator->engine().router().any_peer_memory();
    for (const bool heap : {true, false}) {
      Place input(memory, kCount, heap), output(memory, kCount, heap), half(memory, kCount / 2, heap);
      const auto mine = contribution(rank, kCount);
      const auto sum = sum_of_contributions(2, kCount);
      std::copy(mine.begin(), mine.end(), input.data());
      Call call;
      call.collective = Collective::reduce_scatter;
      call.input = input.view();
      call.output = half.view();
      wait(*communicator, communicator->submit(std::move(call)));
      CHECK(std::equal(sum.begin() + rank * kCount / 2, sum.begin() + (rank + 1) * kCount / 2, half.data()));
      call = {};
      call.collective = Collective::all_gather;
      call.input = half.view();
      call.output = output.view();
      wait(*communicator, communicator->submit(std::move(call)));
      CHECK(output.holds(sum));
    }
  });
}

}  // namespace pycomm
