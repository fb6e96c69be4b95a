// The one exchange that precedes every connection.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/environment.h"
#include "core/registry.h"

namespace pycomm {

class Bootstrap {
 public:
  virtual ~Bootstrap() = default;
  // Collective and blocking: everyone's bytes, by rank. Throws TransportError, or Timeout after `timeout_s`.
  virtual std::vector<std::string> exchange(const std::string& bytes, double timeout_s) = 0;
};

struct BootstrapEntry {
  std::string name;
  // Null when its handle is missing.
  std::unique_ptr<Bootstrap> (*create)(const Environment& environment) = nullptr;
};

}  // namespace pycomm
