#include "plan/verify.h"
#include <cstdio>
#include "check.h"
using namespace pycomm;
TEST(all) {
  for (auto* a : Registry<Algorithm>::instance().all())
    for (int n = 1; n <= 33; ++n)
      if (!a->supports || a->supports(n)) { auto e = verify(*a, n); ++check::checks(); if (!e.empty()) { std::printf("%s\n", e.c_str()); break; } }
}
