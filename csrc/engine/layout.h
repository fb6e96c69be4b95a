// Where the chunks of one call lie in this rank's input and output (plan/plan.h says which rank holds which),
// in elements.
#pragma once

#include <cstdint>
#include <vector>

#include "core/partition.h"
#include "plan/plan.h"

namespace pycomm {

class Layout {
 public:
  // `count` elements in equal parts, as core/partition.h cuts them: what the whole vector has or, for
  // all_to_all, what each rank gives.
  static Layout even(const Spec& spec, std::int64_t count, int chunks);
  // Parts of the caller's sizes: of each rank; for all_to_all, what this rank gives to each rank and what it
  // gets from each (`received`, else unused).
  static Layout chosen(const Spec& spec, const std::vector<std::int64_t>& counts,
                       const std::vector<std::int64_t>& received);

  bool is_chosen() const { return !parts_.empty(); }
  int chunks() const { return chunks_; }
  std::int64_t count(int chunk) const;
  std::int64_t offset(Buffer buffer, int chunk) const;  // in the buffer of a rank that has the chunk there
  std::int64_t largest() const;
  // Elements that the whole buffer has on this rank.
  std::int64_t input_count() const;
  std::int64_t output_count() const;

 private:
  using Offsets = std::vector<std::int64_t>;  // where each part begins, then the end of the last
  static Offsets offsets_of(const std::vector<std::int64_t>& counts);
  static std::int64_t size_in(const Offsets& offsets, int part) { return offsets[part + 1] - offsets[part]; }

  std::int64_t part_count(int part) const;
  std::int64_t part_offset(int part) const;
  std::int64_t whole() const;
  bool is_root() const { return spec_.rank == spec_.root; }
  bool by_pairs() const { return spec_.collective == Collective::all_to_all; }
  std::int64_t pair_count(int from, int to) const;

  Spec spec_;
  int chunks_ = 1;
  Partition even_;
  Offsets parts_;     // of chosen parts; for all_to_all those of the input
  Offsets received_;  // of all_to_all's output
};

}  // namespace pycomm
