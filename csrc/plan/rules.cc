#include "plan/rules.h"

#include <algorithm>
#include <cctype>
#include <limits>

#include "core/error.h"

namespace pycomm {
namespace {

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

bool in_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_';
}

std::string collectives_with_algorithms() {
  std::string names;
  for (const std::string_view name : kCollectiveNames)
    if (name != "send" && name != "recv") names += text(names.empty() ? "" : ", ", name);
  return names;
}

// Reads a text from left to right and says where it is not what it should be.
class Reader {
 public:
  Reader(std::string_view text, std::string_view source) : text_(text), source_(source) {}

  bool at_end() const { return position_ == text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[position_]; }
  std::size_t position() const { return position_; }

  bool skip(char wanted) {
    if (peek() != wanted) return false;
    ++position_;
    return true;
  }

  // Whether there was a comma or a space.
  bool skip_separators() {
    const std::size_t begin = position_;
    while (!at_end() && (peek() == ',' || std::isspace(static_cast<unsigned char>(peek())))) ++position_;
    return position_ > begin;
  }

  std::string_view name(std::string_view expected) {
    const std::size_t begin = position_;
    while (!at_end() && in_name(peek())) ++position_;
    if (position_ == begin) fail(begin, expected);
    return text_.substr(begin, position_ - begin);
  }

  std::int64_t size() {
    const std::size_t begin = position_;
    std::int64_t value = 0;
    for (; std::isdigit(static_cast<unsigned char>(peek())); ++position_) {
      value = 10 * value + (peek() - '0');
      if (value > std::int64_t{1} << 30) fail(begin, "at most 1073741824 before the unit");
    }
    if (position_ == begin) fail(begin, "a size in bytes, such as 4096, 256K, 16M or 1G");
    for (const auto& [unit, shift] : {std::pair('K', 10), std::pair('M', 20), std::pair('G', 30)})
      if (skip(unit)) return value << shift;
    return value;
  }

  [[noreturn]] void fail(std::size_t at, std::string_view expected) const {
    const std::string got = at < text_.size() ? text("'", text_.substr(at, 20), "'") : "the end";
    throw InvalidArgument(
        text(source_, " is '", text_, "'; at character ", at + 1, " expected ", expected, ", got ", got));
  }

 private:
  std::string_view text_;
  std::string_view source_;
  std::size_t position_ = 0;
};

Collective read_collective(Reader& reader) {
  const std::string expected = text("a collective (", collectives_with_algorithms(), ")");
  const std::size_t begin = reader.position();
  const std::string_view name = reader.name(expected);
  const auto known = std::find(kCollectiveNames.begin(), kCollectiveNames.end(), name);
  if (known == kCollectiveNames.end() || name == "send" || name == "recv") reader.fail(begin, expected);
  return static_cast<Collective>(known - kCollectiveNames.begin());
}

const Algorithm& read_algorithm(Reader& reader, Collective collective) {
  std::string known;
  for (const Algorithm* algorithm : algorithms_for(collective))
    known += (known.empty() ? "" : ", ") + short_name(*algorithm);
  const std::string expected = text("an algorithm for ", name_of(collective), " (", known, ")");
  const std::size_t begin = reader.position();
  const std::string_view name = reader.name(expected);
  for (const Algorithm* algorithm : algorithms_for(collective))
    if (short_name(*algorithm) == name) return *algorithm;
  reader.fail(begin, expected);
}

}  // namespace

Rules::Rules(std::string_view text, std::string_view source) {
  Reader reader(text, source);
  reader.skip_separators();
  while (!reader.at_end()) {
    const std::size_t begin = reader.position();
    const Collective collective = read_collective(reader);
    if (rules_.contains(collective)) reader.fail(begin, "another collective: this one has a rule");
    if (!reader.skip(':')) reader.fail(reader.position(), "':' and an algorithm");
    std::vector<Range>& ranges = rules_[collective];
    do {
      const Algorithm& algorithm = read_algorithm(reader, collective);
      ranges.push_back({&algorithm, kNoLimit});
      if (!reader.skip('<')) break;
      const std::size_t size = reader.position();
      ranges.back().below = reader.size();
      if (ranges.size() > 1 && ranges.back().below <= ranges[ranges.size() - 2].below)
        reader.fail(size, "a larger size than the one before");
    } while (reader.skip(';'));
    if (!reader.skip_separators() && !reader.at_end())
      reader.fail(reader.position(), ranges.back().below == kNoLimit
                                         ? "'<' and a size, ',' and the next rule, or the end"
                                         : "';' and an algorithm, ',' and the next rule, or the end");
  }
}

const Algorithm* Rules::find(Collective collective, std::int64_t bytes) const {
  const auto rule = rules_.find(collective);
  if (rule == rules_.end()) return nullptr;
  for (const Range& range : rule->second)
    if (bytes < range.below) return range.algorithm;
  return nullptr;
}

std::string Rules::to_text() const {
  std::string out;
  for (const auto& [collective, ranges] : rules_) {
    out += text(out.empty() ? "" : ",", name_of(collective), ':');
    for (const Range& range : ranges) {
      out += text(&range == ranges.data() ? "" : ";", short_name(*range.algorithm));
      if (range.below != kNoLimit) out += text('<', range.below);
    }
  }
  return out;
}

}  // namespace pycomm
