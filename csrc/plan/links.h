// Over what kind of link each pair of ranks of a group talks, as all its ranks know it. A kind has a name:
// that of the transport, with "/network" behind it where the two are on different machines.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace pycomm {

class Links {
 public:
  // One kind between all pairs.
  Links(int size, std::string kind) : size_(size), kinds_{std::move(kind)} {}
  // `rows[a]` is row_text() of the kinds of link from rank a to each rank; of itself, any.
  explicit Links(const std::vector<std::string>& rows);
  static std::string row_text(const std::vector<std::string>& kinds);

  int size() const { return size_; }
  const std::string& kind(int a, int b) const { return kinds_[index(a, b)]; }
  int index(int a, int b) const {
    return pairs_.empty() ? 0 : pairs_[static_cast<std::size_t>(std::min(a, b)) * size_ + std::max(a, b)];
  }
  const std::vector<std::string>& kinds() const { return kinds_; }
  // All kinds, in order of name, joined by "+"; "none" of a single rank.
  std::string name() const;
  // The most ranks that have no network between them.
  int ranks_per_machine() const;
  Links among(const std::vector<int>& ranks) const;

  // How many pairs have that kind.
  std::int64_t pairs_of(const std::string& kind) const;

 private:
  Links() = default;
  int size_ = 0;
  std::vector<std::string> kinds_;   // in order of name
  std::vector<std::uint8_t> pairs_;  // indices into kinds_; empty where there is one kind
};

bool is_network(const std::string& kind);

}  // namespace pycomm
