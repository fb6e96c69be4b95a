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
  const auto all = Registry<T>::instance().all();
  return i < all.size() ? all[i]->name : text("?", i);
}

}  // namespace

std::string describe(const Header& header) {
  if (header.version != kWireVersion) return text("a message of wire version ", int{header.version});
  return text(name_at(kCollectiveNames, header.collective), "(", name_at(kDTypeNames, header.dtype), " x ", header.count, ", op ",
              name_at(kReduceOpNames, header.op), ", codec ", registered_name<Codec>(header.codec), ", algorithm ",
              registered_name<Algorithm>(header.algorithm), ", root ", header.root, ", scale ", header.scale, "), operation ",
              header.sequence, " of communicator ", header.context);
}

}  // namespace pycomm
