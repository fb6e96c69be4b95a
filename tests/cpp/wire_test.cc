// What a header says about itself, whatever bytes it holds.
#include "engine/wire.h"

#include "check.h"
#include "core/error.h"
#include "fuzz.h"

using namespace pycomm;

namespace {

Header header_of(const std::string& bytes) {
  CHECK(bytes.size() >= sizeof(Header));
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(Header));
  return header;
}

std::string random_header(fuzz::Random& random) {
  std::string out(sizeof(Header), '\0');
  for (char& c : out) c = static_cast<char>(random());
  if (fuzz::below(random, 4) > 0) out[0] = static_cast<char>(kWireVersion);
  return out;
}

}  // namespace

TEST(a_header_of_any_bytes_is_described) {
  fuzz::for_a_while(3, 5000, [](fuzz::Random& random) {
    const Header theirs = header_of(random_header(random));
    const std::string described = describe(theirs);
    CHECK(!described.empty() && described.size() < 300);
    CHECK(described.starts_with("a message of wire version ") == (theirs.version != kWireVersion));
    if (theirs.version == kWireVersion) CHECK(described.find(text(theirs.count)) != std::string::npos);
  });
}

TEST(a_header_names_what_it_does_not_know_by_number) {
  Header header;
  header.collective = header.dtype = header.codec = 255;
  header.op = 15;
  header.order = 7;
  header.algorithm = 254;
  header.count = ~std::uint64_t{0};
  CHECK_EQ(describe(header),
           "?255(?255 x 18446744073709551615, op ?15, order ?7, codec ?255, algorithm ?254, root 0, scale "
           "1), operation "
           "0 of communicator 0");
}

TEST(two_headers_of_any_bytes_are_told_apart) {
  fuzz::for_a_while(4, 5000, [](fuzz::Random& random) {
    const std::string bytes = random_header(random);
    const Header ours = header_of(bytes), theirs = header_of(fuzz::spoiled(random, bytes, {bytes}) + bytes);
    const std::string described = describe_mismatch(7, theirs, 3, ours);
    CHECK(described.find(describe(ours)) != std::string::npos);
    CHECK(described.starts_with("rank 7 called ") || described.starts_with("ranks 7 and 3 made different"));
    if (described.starts_with("rank 7")) CHECK(described.find(describe(theirs)) != std::string::npos);
  });
}

TEST(headers_that_differ_in_history_alone_tell_of_an_earlier_call) {
  Header ours, theirs;
  theirs.history = 1;
  CHECK_EQ(describe_mismatch(1, theirs, 0, ours),
           "ranks 1 and 0 made different calls before " + describe(ours));
}
