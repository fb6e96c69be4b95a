// A call cut into calls of the same kind on pieces of its arrays, one after the other, so that one can be
// moved while another is worked on. Piece k of an array has, of each part of it (where the collective has
// parts; else the array is one), the k-th run of as many elements. All ranks cut alike: what it depends on,
// they agree on.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/call.h"
#include "engine/layout.h"

namespace pycomm {

class Pieces {
 public:
  // `most_bytes`: of what a piece has, input and output together, on any rank. An all_to_all with chosen
  // parts is one piece, since no rank knows all sizes.
  Pieces(const Call& call, const CheckedCall& checked, const Spec& spec, int chunks, std::int64_t most_bytes);

  int count() const { return count_; }
  Layout layout(int piece) const;

  // Elements that lie together, in the array and in the piece's.
  struct Run {
    std::int64_t in_array = 0;
    std::int64_t in_piece = 0;
    std::int64_t count = 0;
  };
  // What this rank has of a piece in that buffer: of the input that it gives, the output that it gets. Empty
  // runs are left out.
  std::vector<Run> runs(int piece, Buffer buffer) const;

 private:
  std::int64_t slice(std::int64_t part_count, int piece) const;
  bool uses(Buffer buffer) const;

  Spec spec_;
  int chunks_;
  std::int64_t vector_count_;  // as Layout::even() takes it
  std::vector<std::int64_t> counts_;
  std::vector<std::int64_t> received_;
  Layout whole_;
  std::int64_t part_piece_ = 0;  // elements of a part that a piece has
  int count_ = 1;
};

}  // namespace pycomm
