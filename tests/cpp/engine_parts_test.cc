// Collectives whose ranks give or get parts, of sizes that the caller chose, with ranks as threads: what the
// sanitizers run. Conformance of values at large is tests/conformance.
#include <numeric>
#include <vector>

#include "check.h"
#include "engines.h"

namespace pycomm {
namespace {

// Unequal, some zero, one of several segments.
std::vector<std::int64_t> sizes_for(int size, int seed) {
  std::vector<std::int64_t> counts(size);
  for (int rank = 0; rank < size; ++rank) counts[rank] = (rank + seed) % 3 == 0 ? 0 : 40 * (rank + seed) + 1;
  counts[seed % size] = 700;
  return counts;
}

std::vector<float> block(int from, int to, std::int64_t count) {
  std::vector<float> values(count);
  for (std::int64_t i = 0; i < count; ++i) values[i] = static_cast<float>((100 * from + 10 * to + i) % 997);
  return values;
}

void append(std::vector<float>& to, const std::vector<float>& values) {
  to.insert(to.end(), values.begin(), values.end());
}

void run(Communicator& communicator, Collective collective, const Algorithm& algorithm,
         std::vector<float>& input, std::vector<float>& output, std::vector<std::int64_t> counts,
         std::vector<std::int64_t> received = {}, int root = 0) {
  Call call;
  call.collective = collective;
  call.input = view_of(input);
  call.output = view_of(output);
  call.algorithm = short_name(algorithm);
  call.counts = std::move(counts);
  call.received = std::move(received);
  call.root = root;
  wait(communicator, communicator.submit(std::move(call)));
}

using Check = std::function<void(Communicator&, const Algorithm&)>;

void check_each(Collective collective, const Check& check) {
  for (const char* transport : {"inproc", "inproc_mapped", "shm"}) {
    for (const int size : {1, 2, 3, 4, 5, 8}) {
      run_engines(size, {.transport = transport}, [&](const std::shared_ptr<Communicator>& communicator) {
        for (const Algorithm* algorithm : algorithms_for(collective)) {
          const bool mapped = is_mapped(transport) || size == 1;
          if (algorithm->uneven && (mapped || !algorithm->mapped) &&
              (!algorithm->supports || algorithm->supports(size)))
            check(*communicator, *algorithm);
        }
      });
    }
  }
}

TEST(engine_exchanges_blocks_of_chosen_sizes) {
  check_each(Collective::all_to_all, [](Communicator& communicator, const Algorithm& algorithm) {
    const int rank = communicator.rank(), size = communicator.size();
    const auto counts = sizes_for(size, rank);
    std::vector<std::int64_t> received;
    std::vector<float> input, expected;
    for (int peer = 0; peer < size; ++peer) {
      append(input, block(rank, peer, counts[peer]));
      received.push_back(sizes_for(size, peer)[rank]);
      append(expected, block(peer, rank, received.back()));
    }
    std::vector<float> output(expected.size());
    run(communicator, Collective::all_to_all, algorithm, input, output, counts, received);
    CHECK(output == expected);
  });
}

TEST(engine_gathers_and_scatters_parts_of_chosen_sizes) {
  for (const Collective collective : {Collective::gather, Collective::scatter, Collective::all_gather}) {
    check_each(collective, [&](Communicator& communicator, const Algorithm& algorithm) {
      const int rank = communicator.rank(), size = communicator.size();
      const auto counts = sizes_for(size, 1);
      std::vector<float> whole;
      for (int part = 0; part < size; ++part) append(whole, block(part, 0, counts[part]));
      const std::vector<float> mine = block(rank, 0, counts[rank]);
      for (const int root : {0, size - 1}) {
        const bool scatters = collective == Collective::scatter;
        const bool has_whole = collective == Collective::all_gather || rank == root;
        std::vector<float> input = !scatters ? mine : has_whole ? whole : std::vector<float>{};
        std::vector<float> output(scatters ? mine.size() : has_whole ? whole.size() : 0);
        run(communicator, collective, algorithm, input, output, counts, {},
            collective == Collective::all_gather ? 0 : root);
        CHECK(output == (scatters ? mine : has_whole ? whole : std::vector<float>{}));
      }
    });
  }
}

TEST(engine_reduces_and_scatters_parts_of_chosen_sizes) {
  check_each(Collective::reduce_scatter, [](Communicator& communicator, const Algorithm& algorithm) {
    const int rank = communicator.rank(), size = communicator.size();
    const auto counts = sizes_for(size, 2);
    const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    const std::int64_t before = std::accumulate(counts.begin(), counts.begin() + rank, std::int64_t{0});
    auto input = contribution(rank, total);
    std::vector<float> output(counts[rank]);
    run(communicator, Collective::reduce_scatter, algorithm, input, output, counts);
    const auto sum = sum_of_contributions(size, total);
    CHECK(std::equal(output.begin(), output.end(), sum.begin() + before));
  });
}

}  // namespace
}  // namespace pycomm
