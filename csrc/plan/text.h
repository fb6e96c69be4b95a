// Plans as text: for error messages, for people, and back.
//
//   chunks 2
//   stage 0
//     send chunk 1 of input to 1
//     recv_reduce chunk 0 of input and from 1 into output, final
//
// One line per step, indented by two spaces; stages are numbered from 0. What a step does not use, the text
// does not say: the parser leaves it as the short forms in plan.h do.
#pragma once

#include <string>
#include <string_view>

#include "plan/plan.h"

namespace pycomm {

std::string to_text(Buffer buffer);
std::string to_text(const Step& step);
std::string to_text(const Plan& plan);

// More than any plan has, and few enough that numbers in a text cannot ask for absurd memory.
inline constexpr int kMostChunks = 1 << 20;
inline constexpr int kMostRanks = 1 << 16;
inline constexpr int kMostSlots = 1 << 16;

// The plan whose text this is, to the letter: to_text(plan_from_text(source)) == source. Whether it is right
// is for verify() to say. Throws InvalidArgument with the line, what was expected there and what was found;
// takes time and memory in proportion to the text.
Plan plan_from_text(std::string_view source);

}  // namespace pycomm
