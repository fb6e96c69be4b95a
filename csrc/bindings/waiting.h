// Waiting for an operation from Python: without the GIL, and still open to Ctrl-C.
#pragma once

#include "engine/communicator.h"

namespace pycomm::bindings {

inline constexpr double kForeverSeconds = 1e9;  // an operation's own deadline ends it

// Call with the GIL. False when the time is over first. A signal handler that raises gives the operation up.
bool wait_for(Communicator& communicator, Work& work, double timeout_s);

// Throws what made a finished work fail.
void raise_failure(const Work& work);

}  // namespace pycomm::bindings
