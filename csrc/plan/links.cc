#include "plan/links.h"

#include <map>
#include <sstream>

#include "core/error.h"

namespace pycomm {

bool is_network(const std::string& kind) {
  return kind.ends_with("/network");
}

// "shm 3 mpi/network 8 ": runs of equal kinds, so that a row is short on any number of ranks.
std::string Links::row_text(const std::vector<std::string>& kinds) {
  std::ostringstream out;
  for (std::size_t i = 0, end = 0; i < kinds.size(); i = end) {
    for (end = i; end < kinds.size() && kinds[end] == kinds[i];) ++end;
    out << kinds[i] << ' ' << end - i << ' ';
  }
  return out.str();
}

Links::Links(const std::vector<std::string>& rows) : size_(static_cast<int>(rows.size())) {
  // Every pair once, from its lower rank's row.
  const auto for_each_run = [&](auto visit) {
    for (int a = 0; a < size_; ++a) {
      std::istringstream in(rows[a]);
      int b = 0, count = 0;
      for (std::string kind; in >> kind >> count; b += count)
        if (const int first = std::max(b, a + 1); first < b + count) visit(kind, a, first, b + count);
      PYCOMM_DCHECK(b == size_);
    }
  };
  std::map<std::string, int> numbers;
  for_each_run([&](const std::string& kind, int, int, int) { numbers[kind] = 0; });
  if (numbers.empty()) numbers["none"] = 0;
  for (auto& [kind, number] : numbers) {
    number = static_cast<int>(kinds_.size());
    kinds_.push_back(kind);
  }
  if (kinds_.size() == 1) return;
  pairs_.resize(static_cast<std::size_t>(size_) * size_);
  for_each_run([&](const std::string& kind, int a, int begin, int end) {
    const auto row = pairs_.begin() + static_cast<std::ptrdiff_t>(a) * size_;
    std::fill(row + begin, row + end, static_cast<std::uint8_t>(numbers[kind]));
  });
}

std::string Links::name() const {
  if (size_ < 2) return "none";
  std::string joined;
  for (const std::string& kind : kinds_) joined += (joined.empty() ? "" : "+") + kind;
  return joined;
}

std::int64_t Links::pairs_of(const std::string& wanted) const {
  std::int64_t count = 0;
  for (int a = 0; a < size_; ++a)
    for (int b = a + 1; b < size_; ++b) count += kind(a, b) == wanted;
  return count;
}

int Links::ranks_per_machine() const {
  if (pairs_.empty()) return is_network(kinds_[0]) ? 1 : size_;
  std::vector<int> members(size_, 0);  // of the machine that begins with this rank
  int most = 1;
  for (int rank = 0; rank < size_; ++rank) {
    int first = 0;
    while (first < rank && is_network(kind(first, rank))) ++first;
    most = std::max(most, ++members[first]);
  }
  return most;
}

Links Links::among(const std::vector<int>& ranks) const {
  Links some;
  some.size_ = static_cast<int>(ranks.size());
  std::vector<bool> used(kinds_.size());
  for (const int a : ranks)
    for (const int b : ranks) used[index(a, b)] = used[index(a, b)] || a != b;
  std::vector<std::uint8_t> numbers(kinds_.size());
  for (std::size_t i = 0; i < kinds_.size(); ++i) {
    numbers[i] = static_cast<std::uint8_t>(some.kinds_.size());
    if (used[i]) some.kinds_.push_back(kinds_[i]);
  }
  if (some.kinds_.empty()) some.kinds_ = {"none"};
  if (some.kinds_.size() == 1) return some;
  for (const int a : ranks)
    for (const int b : ranks) some.pairs_.push_back(a == b ? 0 : numbers[index(a, b)]);
  return some;
}

}  // namespace pycomm
