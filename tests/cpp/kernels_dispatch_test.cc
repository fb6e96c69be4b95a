// Which table is in use, and who says so.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "check.h"
#include "core/error.h"
#include "kernels/kernels.h"

namespace pycomm {
namespace {

std::string output_of(const std::string& command) {
  std::string out;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw Error(ErrorKind::internal, "popen failed");
  for (int c; (c = std::fgetc(pipe)) != EOF;) out += static_cast<char>(c);
  pclose(pipe);
  return out;
}

constexpr const char* kChoiceTest = "kernels_in_use_are_the_widest_or_those_named_by_PYCOMM_ISA";

// What kChoiceTest prints in a process of its own, as the choice is made once per process.
std::string choice_with(const std::string& isa) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  return output_of("PYCOMM_ISA='" + isa + "' '" + program + "' " + kChoiceTest + " 2>&1");
}

}  // namespace

TEST(kernels_named_lists_what_is_available) {
  for (const Kernels* table : available_kernels()) CHECK_EQ(&kernels_named(table->isa), table);
  CHECK_THROWS(kernels_named("sse9"), InvalidArgument, "'sse9'");
  CHECK_THROWS(kernels_named(""), InvalidArgument, "available: scalar");
}

TEST(kernels_in_use_are_the_widest_or_those_named_by_PYCOMM_ISA) {
  const char* name = std::getenv("PYCOMM_ISA");
  const bool named = name != nullptr && *name != '\0';
  CHECK_EQ(std::string(kernels().isa), std::string(named ? name : available_kernels().back()->isa));
}

TEST(PYCOMM_ISA_is_obeyed_or_refused) {
  CHECK(choice_with("").find("1 passed, 0 failed") != std::string::npos);
  for (const Kernels* table : available_kernels())
    CHECK(choice_with(table->isa).find("1 passed, 0 failed") != std::string::npos);
  const std::string refusal = choice_with("sse9");
  CHECK(refusal.find("PYCOMM_ISA") != std::string::npos);
  CHECK(refusal.find("'sse9'") != std::string::npos);
  CHECK(refusal.find("available: scalar") != std::string::npos);
}

}  // namespace pycomm
