#include "engine/wire.h"

#include <array>

#include "codec/codec.h"
#include "core/error.h"
#include "plan/plan.h"

namespace pycomm {
namespace {

template <std::size_t n>
std::string name_at(const std::array<std::string_view, n>& names, std::size_t i) {
  return i < n ? std::string(names[i]) : text("?", i);
}

template <class T>
std::string registered_name(std::size_t i) {
  const auto& all = Registry<T>::instance().all();
  return i < all.size() ? all[i]->name : text("?", i);
}

std::string name_of_algorithm(const Header& header) {
  if (header.algorithm != kOwnAlgorithm) return registered_name<Algorithm>(header.algorithm);
  return text("of the caller's own, digest ", std::hex, header.plans);
}

}  // namespace

namespace {

bool is_pair(const Header& header) {
  return header.collective == static_cast<std::uint8_t>(Collective::send) ||
         header.collective == static_cast<std::uint8_t>(Collective::recv);
}

std::string size_of_call(const Header& header) {
  const std::string_view where = header.in_pieces ? " on a device" : "";
  if (header.parts == 0) return text(" x ", header.count, where);
  if (header.parts != kChosenParts)  // of one channel
    return text(" x ", header.count, where, " between these two ranks, in parts of chosen sizes, digest ",
                std::hex, header.parts);
  const bool known = header.collective != static_cast<std::uint8_t>(Collective::all_to_all);
  return text(known ? text(" x ", header.count) : "", where, " in parts of chosen sizes");
}

}  // namespace

std::string describe(const Header& header) {
  if (header.version != kWireVersion) return text("a message of wire version ", int{header.version});
  const std::string call = text(name_at(kCollectiveNames, header.collective), "(",
                                name_at(kDTypeNames, header.dtype), size_of_call(header));
  if (is_pair(header))
    return text(call, "), message ", header.sequence, " of this pair in communicator ", header.context);
  return text(call, ", op ", name_at(kReduceOpNames, header.op), ", order ",
              name_at(kOrderNames, header.order), ", codec ", registered_name<Codec>(header.codec),
              ", algorithm ", name_of_algorithm(header), ", root ", header.root, ", scale ", header.scale,
              "), operation ", header.sequence, " of communicator ", header.context);
}

std::uint32_t digest_of(const void* data, std::size_t bytes) {
  std::uint32_t digest = 2166136261u;
  const auto* byte = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i) digest = (digest ^ byte[i]) * 16777619u;
  return digest;
}

std::uint32_t Header::next_history() const {
  // By words, for this is done in every call: FNV's step, folded so that high bits reach low ones.
  std::array<std::uint64_t, sizeof(Header) / 8> words;
  std::memcpy(words.data(), this, sizeof(Header));
  std::uint64_t digest = 14695981039346656037u;
  for (const std::uint64_t word : words) {
    digest = (digest ^ word) * 1099511628211u;
    digest ^= digest >> 32;
  }
  return static_cast<std::uint32_t>(digest);
}

void Header::describe_parts(const std::vector<std::int64_t>& counts) {
  count = 0;
  for (const std::int64_t part : counts) count += static_cast<std::uint64_t>(part);
  parts = digest_of(counts.data(), counts.size() * sizeof(std::int64_t)) | 2u;
}

std::string describe_mismatch(int their_rank, const Header& theirs, int our_rank, const Header& ours) {
  Header same_history = theirs;
  same_history.history = ours.history;
  if (same_history == ours)
    return text("ranks ", their_rank, " and ", our_rank, " made different calls before ", describe(ours));
  return text("rank ", their_rank, " called ", describe(theirs), ", rank ", our_rank, " called ",
              describe(ours));
}

}  // namespace pycomm
