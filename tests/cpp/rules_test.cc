// PYCOMM_ALGO.
#include "plan/rules.h"

#include "check.h"

using namespace pycomm;

namespace {

std::string named(const Rules& rules, Collective collective, std::int64_t bytes) {
  const Algorithm* const algorithm = rules.find(collective, bytes);
  return algorithm ? short_name(*algorithm) : "";
}

}  // namespace

TEST(rules_hold_below_their_size_and_the_last_one_for_the_rest) {
  const Rules rules("all_reduce:direct<256K;ring, broadcast:binomial<1M", "X");
  CHECK_EQ(named(rules, Collective::all_reduce, 0), "direct");
  CHECK_EQ(named(rules, Collective::all_reduce, (256 << 10) - 1), "direct");
  CHECK_EQ(named(rules, Collective::all_reduce, 256 << 10), "ring");
  CHECK_EQ(named(rules, Collective::broadcast, (1 << 20) - 1), "binomial");
  CHECK_EQ(named(rules, Collective::broadcast, 1 << 20), "");
  CHECK_EQ(named(rules, Collective::reduce, 0), "");
}

TEST(rules_have_one_form_and_are_read_back) {
  const std::string once = Rules("  reduce:binomial<4096;ring   all_reduce:ring<1G ", "X").to_text();
  CHECK_EQ(once, "all_reduce:ring<1073741824,reduce:binomial<4096;ring");
  CHECK_EQ(Rules(once, "X").to_text(), once);
  CHECK_EQ(Rules("", "X").to_text(), "");
  CHECK(Rules(" , ", "X").empty());
}

TEST(a_mistake_in_rules_is_named_with_its_place_and_what_exists) {
  const std::map<std::string, std::pair<std::string, std::string>> mistakes = {
      {"all_redux:ring", {"at character 1 expected a collective (all_reduce, ", "got 'all_redux:ring'"}},
      {"send:direct", {"at character 1 expected a collective", "barrier"}},
      {"all_reduce", {"at character 11 expected ':' and an algorithm", "got the end"}},
      {"all_reduce:", {"at character 12 expected an algorithm for all_reduce (direct, ", "got the end"}},
      {"all_reduce:rin<4K", {"at character 12 expected an algorithm for all_reduce", "ring"}},
      {"all_reduce:ring<", {"at character 17 expected a size in bytes", "256K"}},
      {"all_reduce:ring<4KB", {"at character 19 expected ';' and an algorithm", "got 'B'"}},
      {"all_reduce:ring<4T", {"at character 18", "got 'T'"}},
      {"all_reduce:ring<99999999999", {"at character 17 expected at most", "'99999999999'"}},
      {"all_reduce:ring<4K;direct<4K", {"at character 27 expected a larger size", "'4K'"}},
      {"all_reduce:ring;direct", {"at character 16 expected '<' and a size", "';direct'"}},
      {"all_reduce:ring<4K;", {"at character 20 expected an algorithm", "got the end"}},
      {"all_reduce:ring all_reduce:direct", {"at character 17 expected another collective", "all_reduce"}},
      {"all_reduce=ring", {"at character 11 expected ':'", "'=ring'"}}};
  for (const auto& [rules, parts] : mistakes) {
    CHECK_THROWS(Rules(rules, "PYCOMM_ALGO"), InvalidArgument, parts.first);
    CHECK_THROWS(Rules(rules, "PYCOMM_ALGO"), InvalidArgument, parts.second);
    CHECK_THROWS(Rules(rules, "PYCOMM_ALGO"), InvalidArgument, "PYCOMM_ALGO is '" + rules + "'");
  }
}
