#include "bindings/bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The collectives engine. Use it through the package pycomm.";
  using namespace pycomm::bindings;
  bind_errors(m);
  bind_work(m);
  bind_trace(m);
  bind_engine(m);
  bind_plans(m);
  bind_communicator(m);
  bind_persistent(m);
  bind_bucketer(m);
  bind_mailbox(m);
  bind_memory(m);
  bind_info(m);
  bind_selection(m);
}
