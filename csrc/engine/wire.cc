#include "engine/wire.h"

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

}  // namespace

std::string describe(const Header& header) {
  if (header.version != kWireVersion) return text("a message of wire version ", int{header.version});
  return text(name_at(kCollectiveNames, header.collective), "(", name_at(kDTypeNames, header.dtype), " x ",
              header.count, ", op ", name_at(kReduceOpNames, header.op), ", codec ",
              registered_name<Codec>(header.codec), ", algorithm ",
              registered_name<Algorithm>(header.algorithm), ", root ", header.root, ", scale ", header.scale,
              "), operation ", header.sequence, " of communicator ", header.context);
}

std::uint32_t Header::next_history() const {
  std::uint32_t digest = 2166136261u;  // FNV-1a
  unsigned char bytes[sizeof(Header)];
  std::memcpy(bytes, this, sizeof(Header));
  for (const unsigned char byte : bytes) digest = (digest ^ byte) * 16777619u;
  return digest;
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
