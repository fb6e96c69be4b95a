#include "engine/layout.h"

#include <algorithm>
#include <numeric>

namespace pycomm {

Layout Layout::even(const Spec& spec, std::int64_t count, int chunks) {
  Layout layout;
  layout.spec_ = spec;
  layout.chunks_ = chunks;
  layout.even_ = {count, layout.by_pairs() ? spec.size : chunks};
  return layout;
}

Layout Layout::chosen(const Spec& spec, const std::vector<std::int64_t>& counts,
                      const std::vector<std::int64_t>& received) {
  Layout layout;
  layout.spec_ = spec;
  layout.chunks_ = layout.by_pairs() ? spec.size * spec.size : spec.size;
  layout.parts_ = offsets_of(counts);
  layout.received_ = offsets_of(received);
  return layout;
}

Layout::Offsets Layout::offsets_of(const std::vector<std::int64_t>& counts) {
  Offsets offsets(counts.size() + 1);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

std::int64_t Layout::count(int chunk) const {
  return by_pairs() ? pair_count(chunk / spec_.size, chunk % spec_.size) : part_count(chunk);
}

std::int64_t Layout::pair_count(int from, int to) const {
  if (!is_chosen()) return even_.size(to);
  PYCOMM_DCHECK(from == spec_.rank || to == spec_.rank);  // nobody told us the others'
  return from == spec_.rank ? size_in(parts_, to) : size_in(received_, from);
}

std::int64_t Layout::offset(Buffer buffer, int chunk) const {
  switch (spec_.collective) {
    case Collective::all_gather:
    case Collective::gather:
      return buffer == kInput ? 0 : part_offset(chunk);
    case Collective::reduce_scatter:
    case Collective::scatter:
      return buffer == kInput ? part_offset(chunk) : 0;
    case Collective::all_to_all: {
      const int from = chunk / spec_.size, to = chunk % spec_.size;
      if (buffer == kInput) return part_offset(to);
      return is_chosen() ? received_[from] : from * even_.size(to);
    }
    default:
      return part_offset(chunk);
  }
}

std::int64_t Layout::largest() const {
  if (!is_chosen()) return even_.largest();
  std::int64_t most = 0;
  for (int part = 0; part < spec_.size; ++part) {
    most = std::max(most, size_in(parts_, part));
    if (by_pairs()) most = std::max(most, size_in(received_, part));
  }
  return most;
}

std::int64_t Layout::input_count() const {
  switch (spec_.collective) {
    case Collective::all_gather:
    case Collective::gather:
      return part_count(spec_.rank);
    case Collective::scatter:
      return is_root() ? whole() : 0;
    default:
      return whole();
  }
}

std::int64_t Layout::output_count() const {
  switch (spec_.collective) {
    case Collective::reduce_scatter:
    case Collective::scatter:
      return part_count(spec_.rank);
    case Collective::reduce:
    case Collective::gather:
      return is_root() ? whole() : 0;
    case Collective::all_to_all:
      return is_chosen() ? received_.back() : spec_.size * even_.size(spec_.rank);
    default:
      return whole();
  }
}

std::int64_t Layout::part_count(int part) const {
  return is_chosen() ? size_in(parts_, part) : even_.size(part);
}

std::int64_t Layout::part_offset(int part) const {
  return is_chosen() ? parts_[part] : even_.offset(part);
}

std::int64_t Layout::whole() const {
  return is_chosen() ? parts_.back() : even_.count;
}

}  // namespace pycomm
