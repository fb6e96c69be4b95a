// A call that has been checked and planned.
#pragma once

#include <memory>

#include "engine/call.h"
#include "engine/driver.h"

namespace pycomm {

// It may be started any number of times, one after the other.
struct Prepared {
  Call call;                   // but for what keeps its memory alive: the task's work does
  std::shared_ptr<Task> task;  // its header lacks what numbers it
};

}  // namespace pycomm
