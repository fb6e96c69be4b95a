// The exchange by a function of the caller's: ranks that some other launcher brought together.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace pycomm {

// Collective and blocking: gives this rank's bytes, returns everyone's, by rank; throws when `timeout_s` are
// over. Its address is the handle "callback".
using ExchangeCallback = std::function<std::vector<std::string>(const std::string& bytes, double timeout_s)>;

}  // namespace pycomm
