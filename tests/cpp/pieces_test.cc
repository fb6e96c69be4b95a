// How calls are cut: every element once, in pieces that are calls of the same kind, alike on all ranks.
#include "engine/pieces.h"

#include <numeric>
#include <string>
#include <vector>

#include "check.h"

namespace pycomm {
namespace {

constexpr std::int64_t kMostBytes = 4096;

Call call_of(Collective collective, int rank, int size, int root, const std::vector<std::int64_t>& counts,
             const std::vector<std::int64_t>& received, std::int64_t count) {
  Call call;
  call.collective = collective;
  call.root = root;
  call.counts = counts;
  call.received = received;
  const Spec spec{collective, rank, size, root};
  const int chunks = has_parts(collective) ? chunks_of_parts(collective, size) : 1;
  const Layout whole =
      counts.empty() ? Layout::even(spec, count, chunks) : Layout::chosen(spec, counts, received);
  static std::byte input, output;
  call.input = {&input, whole.input_count(), DType::f32};
  call.output = {&output, whole.output_count(), DType::f32};
  return call;
}

// Where each element of an array goes, by piece and place in it; each place once.
void check_runs(const Pieces& pieces, Buffer buffer, std::int64_t array_count, const std::string& what) {
  std::vector<int> seen(static_cast<std::size_t>(array_count));
  for (int piece = 0; piece < pieces.count(); ++piece) {
    const Layout layout = pieces.layout(piece);
    const std::int64_t piece_count = buffer == kInput ? layout.input_count() : layout.output_count();
    std::vector<int> filled(static_cast<std::size_t>(piece_count));
    for (const auto& run : pieces.runs(piece, buffer)) {
      CHECK(run.count > 0 && run.in_array >= 0 && run.in_array + run.count <= array_count);
      CHECK(run.in_piece >= 0 && run.in_piece + run.count <= piece_count);
      for (std::int64_t i = 0; i < run.count; ++i) ++seen[run.in_array + i], ++filled[run.in_piece + i];
    }
    CHECK(filled == std::vector<int>(filled.size(), 1));
  }
  CHECK_EQ(seen == std::vector<int>(seen.size(), 1), true, what);
}

void check_pieces(Collective collective, int size, int root, const std::vector<std::int64_t>& counts,
                  std::int64_t count) {
  std::vector<int> in_pieces;
  for (int rank = 0; rank < size; ++rank) {
    const Spec spec{collective, rank, size, root};
    const int chunks = has_parts(collective) ? chunks_of_parts(collective, size) : 3;
    const Call call = call_of(collective, rank, size, root, counts, {}, count);
    const std::int64_t whole = counts.empty() ? count : std::accumulate(counts.begin(), counts.end(), 0LL);
    const Pieces pieces(call, {codec_named("none"), whole, false}, spec, chunks, kMostBytes);
    in_pieces.push_back(pieces.count());
    const std::string what = text(name_of(collective), ", rank ", rank, " of ", size, ", count ", whole);
    const bool gives = !pieces.runs(0, kInput).empty(), gets = !pieces.runs(0, kOutput).empty();
    if (gives) check_runs(pieces, kInput, call.input.count, what);
    if (gets) check_runs(pieces, kOutput, call.output.count, what);
    for (int piece = 0; piece < pieces.count(); ++piece) {
      const Layout layout = pieces.layout(piece);
      const std::int64_t bytes = 4 * (layout.input_count() + layout.output_count());
      CHECK(bytes <= kMostBytes || bytes <= 4 * 64 * 2 * size);
    }
  }
  for (const int pieces : in_pieces) CHECK_EQ(pieces, in_pieces[0], name_of(collective));
  if (count > 100000) CHECK(in_pieces[0] > 1);
}

}  // namespace

TEST(pieces_have_every_element_once) {
  for (const Collective collective :
       {Collective::all_reduce, Collective::reduce_scatter, Collective::all_gather, Collective::broadcast,
        Collective::reduce, Collective::gather, Collective::scatter, Collective::all_to_all})
    for (const int size : {1, 2, 3, 8})
      for (const std::int64_t count : {0, 1, size - 1, size + 1, 5000, 100003})
        for (const int root : {0, size - 1}) check_pieces(collective, size, root, {}, count);
}

TEST(pieces_of_chosen_parts_have_every_element_once) {
  const std::vector<std::int64_t> counts = {0, 9001, 1, 40000, 63};
  for (const Collective collective :
       {Collective::reduce_scatter, Collective::all_gather, Collective::gather, Collective::scatter})
    for (const int root : {0, 3}) check_pieces(collective, 5, root, counts, 0);
}

TEST(an_all_to_all_of_chosen_parts_is_one_piece) {
  const std::vector<std::int64_t> gives = {100000, 0, 7}, gets = {100000, 5, 90000};
  const Spec spec{Collective::all_to_all, 0, 3, 0};
  const Call call = call_of(Collective::all_to_all, 0, 3, 0, gives, gets, 0);
  const Pieces pieces(call, {codec_named("none"), 0, false}, spec, 9, kMostBytes);
  CHECK_EQ(pieces.count(), 1);
  check_runs(pieces, kInput, 100007, "input");
  check_runs(pieces, kOutput, 190005, "output");
}

TEST(a_rank_that_gives_or_gets_nothing_has_no_runs) {
  const auto runs = [](Collective collective, int rank, Buffer buffer) {
    const Call call = call_of(collective, rank, 2, 0, {}, {}, 1000);
    return Pieces(call, {codec_named("none"), 1000, false}, {collective, rank, 2, 0}, 2, kMostBytes)
        .runs(0, buffer)
        .size();
  };
  CHECK_EQ(runs(Collective::broadcast, 0, kInput), 1u);
  CHECK_EQ(runs(Collective::broadcast, 0, kOutput), 0u);
  CHECK_EQ(runs(Collective::broadcast, 1, kInput), 0u);
  CHECK_EQ(runs(Collective::broadcast, 1, kOutput), 1u);
  CHECK_EQ(runs(Collective::reduce, 1, kInput), 1u);
  CHECK_EQ(runs(Collective::reduce, 1, kOutput), 0u);
  CHECK_EQ(runs(Collective::gather, 0, kOutput), 2u);
  CHECK_EQ(runs(Collective::scatter, 1, kInput), 0u);
}

}  // namespace pycomm
