// What an operation waits for, and how it is given up.
#include <algorithm>

#include "core/error.h"
#include "engine/executor_host.h"

namespace pycomm {

std::string HostExecutor::waiting_for() const {
  const Lane* oldest = nullptr;
  int oldest_step = 0;
  for (const Lane& lane : lanes_) {
    int step = -1;
    if (!lane.flights.empty()) {
      step = lane.flights.front().step >= 0 ? lane.flights.front().step : lane.channel->steps[0];
    } else if (lane.next < lane.channel->steps.size()) {
      step = lane.channel->steps[lane.next];
    }
    if (step < 0) continue;
    if (!oldest || plan_.steps[step].stage < plan_.steps[oldest_step].stage) {
      oldest = &lane;
      oldest_step = step;
    }
  }
  if (!oldest) return "its own steps";
  const Progress& progress = progress_[oldest_step];
  return text(oldest->channel->outgoing ? "send to" : "recv from", " rank ", oldest->channel->peer,
              " in stage ", plan_.steps[oldest_step].stage + 1, " of ", plan_.stages, " (chunk ",
              plan_.steps[oldest_step].step.chunk, ", segment ",
              std::min(progress.done + 1, progress.segments), " of ", progress.segments, ")");
}

bool HostExecutor::withdraw() {
  bool empty = true;
  for (Lane& lane : lanes_) {
    lane.next = lane.channel->steps.size();
    std::erase_if(lane.flights, [&](Flight& flight) {
      if (flight.landed) return true;
      bool done = false;
      try {
        done = lane.transport->poll(flight.ticket).has_value();
      } catch (const Error&) {
        // Said once; the ticket is then only to be cancelled.
      }
      if (!done) return lane.transport->cancel(flight.ticket);
      // It arrived after all: a peer that was met so knows where our buffers lie.
      if (lane.channel->outgoing && flight.step >= 0) complete(flight.step);
      return true;
    });
    empty &= lane.flights.empty();
  }
  return empty && !exposed();
}

// Whether peers may read and write our buffers: they know where these lie, and have not all come to the last
// meet.
bool HostExecutor::exposed() const {
  bool open = false;
  for (std::size_t i = 0; i < progress_.size(); ++i) {
    const Step& step = plan_.steps[i].step;
    if (step.op != Op::meet) continue;
    open = progress_[i].done == 0;
  }
  return told_ && open;
}

bool HostExecutor::waits_for(int world_peer) const {
  for (const Lane& lane : lanes_)
    if (lane.world_peer == world_peer && (!lane.flights.empty() || lane.next < lane.channel->steps.size()))
      return true;
  return false;
}

}  // namespace pycomm
