// pycomm_tests            runs every test
// pycomm_tests --list     names them
// pycomm_tests NAME...    runs those
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "check.h"

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (auto& [name, function] : check::tests()) std::puts(name.c_str());
    return 0;
  }
  std::vector<std::string> names(argv + 1, argv + argc);
  if (names.empty())
    for (auto& [name, function] : check::tests()) names.push_back(name);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // who stops a test that hangs sees which
  int failed = 0;
  for (auto& name : names) {
    const auto found = check::tests().find(name);
    if (found == check::tests().end()) {
      std::printf("FAILED %s: no such test\n", name.c_str());
      ++failed;
      continue;
    }
    const long before = check::checks();
    try {
      found->second();
      std::printf("ok     %s (%ld checks)\n", name.c_str(), check::checks() - before);
      if (check::checks() == before) throw check::Failure("it checked nothing");
    } catch (const std::exception& error) {
      std::printf("FAILED %s: %s\n", name.c_str(), error.what());
      ++failed;
    }
  }
  std::printf("%zu passed, %d failed\n", names.size() - failed, failed);
  return failed == 0 ? 0 : 1;
}
