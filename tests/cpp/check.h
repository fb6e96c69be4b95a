// A test is a named function; the runner lists them, runs them one process or many, and counts checks.
//
//   TEST(ring_is_verified_for_every_size) { CHECK_EQ(verify(ring, 3), ""); }
#pragma once

#include <atomic>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>

namespace check {

using Function = void (*)();
inline std::map<std::string, Function>& tests() {
  static std::map<std::string, Function> all;
  return all;
}
inline std::atomic<long>& checks() {
  static std::atomic<long> count{0};
  return count;
}
struct Add {
  Add(const char* name, Function function) { tests()[name] = function; }
};
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
template <class... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::ostringstream out;
  out << file << ":" << line << ": ";
  (out << ... << parts);
  throw Failure(out.str());
}

}  // namespace check

#define TEST(name)                                        \
  static void test_##name();                              \
  static const check::Add add_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                      \
  do {                                                                        \
    ++check::checks();                                                        \
    if (!(condition)) check::fail(__FILE__, __LINE__, "not so: " #condition); \
  } while (false)

// Further arguments say in which case.
#define CHECK_EQ(left, right, ...)                                                                         \
  do {                                                                                                     \
    ++check::checks();                                                                                     \
    const auto& left_ = (left);                                                                            \
    const auto& right_ = (right);                                                                          \
    if (!(left_ == right_))                                                                                \
      check::fail(__FILE__, __LINE__, #left " is '", left_, "', expected '", right_, "' ", ##__VA_ARGS__); \
  } while (false)

// `statement` throws `type` with `part` in its message.
#define CHECK_THROWS(statement, type, part)                                                 \
  do {                                                                                      \
    ++check::checks();                                                                      \
    bool thrown_ = false;                                                                   \
    try {                                                                                   \
      statement;                                                                            \
    } catch (const type& error_) {                                                          \
      thrown_ = true;                                                                       \
      if (std::string(error_.what()).find(part) == std::string::npos)                       \
        check::fail(__FILE__, __LINE__, "'", error_.what(), "' does not say '", part, "'"); \
    }                                                                                       \
    if (!thrown_) check::fail(__FILE__, __LINE__, #statement " did not throw " #type);      \
  } while (false)
