#include "engine/pieces.h"

#include <algorithm>

#include "core/partition.h"

namespace pycomm {
namespace {

// Parts that a rank has at most, input and output together. The same for all ranks.
std::int64_t parts_held(Collective collective, int size) {
  if (!has_parts(collective)) return 2;
  return collective == Collective::all_to_all ? 2 * size : size + 1;
}

constexpr std::int64_t kGrain = 64;  // pieces begin on multiples of it

}  // namespace

Pieces::Pieces(const Call& call, const CheckedCall& checked, const Spec& spec, int chunks,
               std::int64_t most_bytes)
    : spec_(spec),
      chunks_(chunks),
      vector_count_(checked.count),
      counts_(call.counts),
      received_(call.received),
      whole_(checked.layout(call, spec, has_parts(spec.collective) ? chunks : 1)) {
  std::int64_t largest =
      has_parts(spec.collective) ? Partition{vector_count_, spec.size}.largest() : vector_count_;
  for (const std::int64_t part : counts_) largest = std::max(largest, part);
  if (spec.collective == Collective::all_to_all && !counts_.empty()) {
    for (const std::int64_t part : received_) largest = std::max(largest, part);
    part_piece_ = std::max<std::int64_t>(1, largest);
    return;
  }
  const std::int64_t bytes = parts_held(spec.collective, spec.size) * size_of(call.input.dtype);
  part_piece_ = std::max(kGrain, most_bytes / bytes / kGrain * kGrain);
  count_ = static_cast<int>(std::max<std::int64_t>(1, (largest + part_piece_ - 1) / part_piece_));
}

std::int64_t Pieces::slice(std::int64_t part_count, int piece) const {
  return std::clamp<std::int64_t>(part_count - piece * part_piece_, 0, part_piece_);
}

// Equal parts differ by one element at most, the larger ones first: so do their slices.
Layout Pieces::layout(int piece) const {
  if (!has_parts(spec_.collective)) return Layout::even(spec_, slice(vector_count_, piece), chunks_);
  if (counts_.empty()) {
    std::int64_t count = 0;
    const Partition parts{vector_count_, spec_.size};
    for (int part = 0; part < spec_.size; ++part) count += slice(parts.size(part), piece);
    return Layout::even(spec_, count, chunks_);
  }
  const auto sliced = [&](std::vector<std::int64_t> counts) {
    for (std::int64_t& count : counts) count = slice(count, piece);
    return counts;
  };
  return Layout::chosen(spec_, sliced(counts_), sliced(received_));
}

bool Pieces::uses(Buffer buffer) const {
  const bool at_root = spec_.rank == spec_.root;
  switch (spec_.collective) {
    case Collective::barrier:
      return false;
    case Collective::broadcast:
      return (buffer == kInput) == at_root;
    case Collective::scatter:
      return buffer == kOutput || at_root;
    case Collective::reduce:
    case Collective::gather:
      return buffer == kInput || at_root;
    case Collective::send:
      return buffer == kInput;
    case Collective::recv:
      return buffer == kOutput;
    default:
      return true;
  }
}

std::vector<Pieces::Run> Pieces::runs(int piece, Buffer buffer) const {
  std::vector<Run> runs;
  if (!uses(buffer)) return runs;
  const auto add = [&](std::int64_t in_array, std::int64_t in_piece, std::int64_t part_count) {
    const std::int64_t count = slice(part_count, piece);
    if (count > 0) runs.push_back({in_array + piece * part_piece_, in_piece, count});
  };
  if (!has_parts(spec_.collective)) {
    add(0, 0, vector_count_);
    return runs;
  }
  const Layout cut = layout(piece);
  for (int chunk = 0; chunk < chunks_; ++chunk)
    if (has_chunk(spec_, buffer, chunk))
      add(whole_.offset(buffer, chunk), cut.offset(buffer, chunk), whole_.count(chunk));
  return runs;
}

}  // namespace pycomm
