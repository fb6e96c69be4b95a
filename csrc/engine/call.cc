#include "engine/call.h"

#include <cmath>

#include "core/error.h"

namespace pycomm {
namespace {

Spec spec_of(const Call& call, int rank, int size) {
  return {call.collective, rank, size, call.root, call.order};
}

void check_root(const Call& call, int rank, int size) {
  PYCOMM_CHECK(call.root >= 0 && call.root < size, is_pair(call.collective) ? "peer" : "root", " is ",
               call.root, "; expected a rank from 0 to ", size - 1);
  PYCOMM_CHECK(!is_pair(call.collective) || call.root != rank, name_of(call.collective), ": rank ", rank,
               " cannot exchange messages with itself");
}

void check_own(const Call& call, int size) {
  if (!call.own_algorithm) return;
  const OwnAlgorithm& own = *call.own_algorithm;
  const bool fits = collective_of(own.algorithm()) == call.collective && own.size() == size &&
                    (!has_root(call.collective) || own.root() == call.root);
  PYCOMM_CHECK(fits, name_of(call.collective), " with root ", call.root, " on ", size, " ranks by ",
               own.algorithm().name, ", whose plans are for root ", own.root(), " on ", own.size(), " ranks");
}

void check_op(const Call& call) {
  const DType dtype = call.input.dtype;
  const bool summed = call.op == ReduceOp::sum || call.op == ReduceOp::avg;
  PYCOMM_CHECK(std::isfinite(call.scale), "scale is ", call.scale, "; expected a finite number");
  if (call.scale == 1.0) return;
  PYCOMM_CHECK(reduces(call.collective) && summed && is_floating(dtype), "scale ", call.scale, " with op ",
               name_of(call.op), " on ", name_of(dtype), " in ", name_of(call.collective),
               ": only sum and avg of floating dtypes are scaled");
}

void check_codec(const Call& call, const Codec& codec) {
  if (codec.lossless) return;
  const DType dtype = call.input.dtype;
  const bool summed = call.op == ReduceOp::sum || call.op == ReduceOp::avg;
  PYCOMM_CHECK(reduces(call.collective) && summed && (dtype == DType::f32 || dtype == DType::f64), "codec ",
               codec.name, " with op ", name_of(call.op), " on ", name_of(dtype), " in ",
               name_of(call.collective), ": lossy codecs serve sum and avg of f32 and f64 in reductions");
}

constexpr std::int64_t kMostElements = std::int64_t{1} << 60;  // of a vector; in bytes still 64 bits

void check_sizes(const Call& call, const std::vector<std::int64_t>& counts, std::string_view what, int size) {
  PYCOMM_CHECK(static_cast<int>(counts.size()) == size, name_of(call.collective), ": ", what, " has ",
               counts.size(), " numbers; expected one for each of ", size, " ranks");
  std::int64_t whole = 0;
  for (int rank = 0; rank < size; ++rank) {
    PYCOMM_CHECK(counts[rank] >= 0 && counts[rank] <= kMostElements - whole, name_of(call.collective), ": ",
                 what, "[", rank, "] is ", counts[rank], "; expected elements, 0 or more, at most ",
                 kMostElements, " in all");
    whole += counts[rank];
  }
}

void check_parts(const Call& call, int rank, int size) {
  const bool by_pairs = call.collective == Collective::all_to_all;
  if (call.counts.empty()) {
    PYCOMM_CHECK(call.received.empty(), name_of(call.collective), ": received is given without counts");
    return;
  }
  PYCOMM_CHECK(has_parts(call.collective), name_of(call.collective),
               " has no parts: counts belong to reduce_scatter, all_gather, gather, scatter and all_to_all");
  check_sizes(call, call.counts, "counts", size);
  if (by_pairs) check_sizes(call, call.received, "received", size);
  PYCOMM_CHECK(by_pairs || call.received.empty(), name_of(call.collective),
               ": received belongs to all_to_all");
  PYCOMM_CHECK(!by_pairs || call.counts[rank] == call.received[rank], name_of(call.collective), ": counts[",
               rank, "] is ", call.counts[rank], " and received[", rank, "] is ", call.received[rank],
               "; rank ", rank, " gets from itself what it gives");
}

std::int64_t whole_count(const Call& call, int size) {
  switch (call.collective) {
    case Collective::all_gather:
      return call.output.count;
    case Collective::gather:
      return call.input.count * size;
    case Collective::scatter:
      return call.output.count * size;
    case Collective::barrier:
      return 0;
    default:
      return call.input.count;
  }
}

void check_counts(const Call& call, const Layout& layout, int rank, int size) {
  const auto name = name_of(call.collective);
  const auto check = [&](const char* what, std::int64_t count, std::int64_t expected) {
    PYCOMM_CHECK(count == expected, name, ": ", what, " has ", count, " elements; expected ", expected,
                 " on rank ", rank, " of ", size);
  };
  check("the input", call.input.count, layout.input_count());
  check("out", call.output.count, layout.output_count());
}

// Whether input and output are the same memory; overlapping otherwise is refused.
bool checked_in_place(const Call& call, const Layout& layout, int rank) {
  const View& input = call.input;
  const View& output = call.output;
  const Collective collective = call.collective;
  if (is_pair(collective) || collective == Collective::broadcast) return true;
  if (input.count == 0 || output.count == 0) return false;
  const std::byte* source = input.data;
  const std::byte* target = output.data;
  if (collective == Collective::reduce_scatter || collective == Collective::scatter)
    source = input.at(layout.offset(kInput, rank));
  if (collective == Collective::all_gather || collective == Collective::gather)
    target = output.at(layout.offset(kOutput, rank));
  const bool by_pairs = collective == Collective::all_to_all;
  if (source == target && !by_pairs) return true;
  const bool apart = input.data + input.bytes() <= output.data || output.data + output.bytes() <= input.data;
  PYCOMM_CHECK(apart, name_of(collective), ": input and out overlap; they must be separate",
               by_pairs ? "" : ", or (in place) the same memory");
  return false;
}

}  // namespace

void check_order(Collective collective, Order order, int size) {
  if (order == Order::any) return;
  PYCOMM_CHECK(reduces(collective), "order ", name_of(order), " in ", name_of(collective),
               ", which adds nothing");
  PYCOMM_CHECK(exists(order, size), "order ", name_of(order), " on ", size,
               " ranks: expected a power of two; order rank serves every number of ranks");
}

Layout CheckedCall::layout(const Call& call, const Spec& spec, int chunks) const {
  return call.counts.empty() ? Layout::even(spec, count, chunks)
                             : Layout::chosen(spec, call.counts, call.received);
}

CheckedCall check_call(const Call& call, int rank, int size) {
  CheckedCall checked{codec_named(call.codec.empty() ? "none" : call.codec), whole_count(call, size), false};
  check_root(call, rank, size);
  check_own(call, size);
  check_op(call);
  check_order(call.collective, call.order, size);
  check_codec(call, checked.codec);
  check_parts(call, rank, size);
  PYCOMM_CHECK(call.input.dtype == call.output.dtype, name_of(call.collective), ": input is ",
               name_of(call.input.dtype), " and out is ", name_of(call.output.dtype),
               "; expected the same dtype");
  const Layout layout =
      checked.layout(call, spec_of(call, rank, size), has_parts(call.collective) ? size : 1);
  check_counts(call, layout, rank, size);
  checked.in_place = checked_in_place(call, layout, rank);
  // All ranks must say the same count, and of an all_to_all with chosen parts none knows the whole.
  if (layout.is_chosen()) {
    checked.count = 0;
    if (call.collective != Collective::all_to_all)
      for (const std::int64_t part : call.counts) checked.count += part;
  }
  return checked;
}

}  // namespace pycomm
