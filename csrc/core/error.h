// The exceptions of the engine. bindings/ translates each to the Python class of the same name.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace pycomm {

enum class ErrorKind { invalid_argument, transport, timeout, aborted, mismatch, internal };

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// What a caller passed cannot be served; nothing has moved.
struct InvalidArgument : Error {
  explicit InvalidArgument(const std::string& what) : Error(ErrorKind::invalid_argument, what) {}
};
// A transport failed beneath us.
struct TransportError : Error {
  explicit TransportError(const std::string& what) : Error(ErrorKind::transport, what) {}
};
// The deadline of an operation passed.
struct Timeout : Error {
  explicit Timeout(const std::string& what) : Error(ErrorKind::timeout, what) {}
};
// The operation was given up: interrupted here, or broken by another rank.
struct Aborted : Error {
  explicit Aborted(const std::string& what) : Error(ErrorKind::aborted, what) {}
};
// Two ranks made different calls.
struct MismatchError : Error {
  explicit MismatchError(const std::string& what) : Error(ErrorKind::mismatch, what) {}
};

// Throws the class that belongs to `kind`.
[[noreturn]] void raise(ErrorKind kind, const std::string& what);

// Joins its arguments as a stream would print them.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace pycomm

// What a caller can cause: throws InvalidArgument with the parts joined.
#define PYCOMM_CHECK(condition, ...)                                                \
  do {                                                                              \
    if (!(condition)) throw ::pycomm::InvalidArgument(::pycomm::text(__VA_ARGS__)); \
  } while (false)

// Our own invariants: an internal error names the place.
#define PYCOMM_DCHECK(condition)                                                                \
  do {                                                                                          \
    if (!(condition))                                                                           \
      throw ::pycomm::Error(::pycomm::ErrorKind::internal,                                      \
                            ::pycomm::text(__FILE__, ":", __LINE__, ": broken: ", #condition)); \
  } while (false)
