// For methods that need a power of two of ranks. The members are the largest power of two, and each of the e
// ranks left over (the odd ones among the first 2e, as in Thakur, Rabenseifner and Gropp, "Optimization of
// collective communication operations in MPICH", 2005) is the extra of the rank before it, which takes part
// for both.
#pragma once

#include <bit>

namespace pycomm {

struct Members {
  explicit Members(int size)
      : count(static_cast<int>(std::bit_floor(static_cast<unsigned>(size)))), extras(size - count) {}
  int count, extras;

  bool is_extra(int rank) const { return rank < 2 * extras && rank % 2 == 1; }
  bool has_extra(int member) const { return member < extras; }
  // Of an extra, the member that it gives its contribution to.
  int member_of(int rank) const { return rank < 2 * extras ? rank / 2 : rank - extras; }
  int rank_of(int member) const { return member < extras ? 2 * member : member + extras; }
};

}  // namespace pycomm
