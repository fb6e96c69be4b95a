// What traces call a thread of Python's.
#pragma once

#include "core/trace.h"

namespace pycomm::bindings {

// Names the calling thread in a trace that is on, as Python does, the first time it is called here. Call with
// the GIL.
void name_this_thread(Trace& trace);

}  // namespace pycomm::bindings
