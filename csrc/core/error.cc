#include "core/error.h"

#include "core/dtype.h"

namespace pycomm {

void raise(ErrorKind kind, const std::string& what) {
  switch (kind) {
    case ErrorKind::invalid_argument:
      throw InvalidArgument(what);
    case ErrorKind::transport:
      throw TransportError(what);
    case ErrorKind::timeout:
      throw Timeout(what);
    case ErrorKind::aborted:
      throw Aborted(what);
    case ErrorKind::mismatch:
      throw MismatchError(what);
    case ErrorKind::internal:
      break;
  }
  throw Error(kind, what);
}

namespace {

template <std::size_t n>
int index_by_name(const std::array<std::string_view, n>& names, std::string_view name, const char* kind) {
  std::string known;
  for (std::size_t i = 0; i < n; ++i) {
    if (names[i] == name) return static_cast<int>(i);
    known += text(i == 0 ? "" : ", ", names[i]);
  }
  throw InvalidArgument(text("unknown ", kind, " '", name, "'; known: ", known));
}

}  // namespace

DType dtype_from_name(std::string_view name) {
  return static_cast<DType>(index_by_name(kDTypeNames, name, "dtype"));
}

ReduceOp reduce_op_from_name(std::string_view name) {
  return static_cast<ReduceOp>(index_by_name(kReduceOpNames, name, "op"));
}

}  // namespace pycomm
