// Settings as rank 0 tells them to the others.
#include "engine/settings.h"

#include "check.h"
#include "core/error.h"

using namespace pycomm;

TEST(settings_are_read_back_as_they_were) {
  Settings settings;
  settings.timeout_s = 0.1;
  settings.segment_bytes = 12345;
  settings.transports = {"shm", "mpi"};
  settings.algo = "all_reduce:direct<262144;ring,reduce:binomial";
  settings.tuned = "/a folder/100%\n\xc3\xa9.json";
  const Settings again = Settings::from_text(settings.to_text());
  CHECK_EQ(again.to_text(), settings.to_text());
  CHECK_EQ(again.tuned, settings.tuned);
  CHECK_EQ(again.algo, settings.algo);
  CHECK_EQ(again.timeout_s, 0.1);
  CHECK_EQ(settings.to_text().find('\n'), std::string::npos);
}

TEST(a_table_is_told_apart_from_settings) {
  Settings settings;
  const std::string without = settings.to_text();
  settings.table = "group 2 2 shm";
  CHECK_EQ(settings.to_text(), without);
}

TEST(rules_among_settings_are_checked) {
  CHECK_THROWS(Settings::from_text("algo=all_reduce:rign"), InvalidArgument, "at character 12");
}
