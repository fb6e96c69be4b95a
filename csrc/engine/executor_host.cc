#include "engine/executor_host.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace pycomm {
namespace {

// The first message to a peer carries its payload behind the header when it is at most this long; longer ones
// follow by themselves, so that they are received in place.
constexpr std::size_t kInlineBytes = 4096 - sizeof(Header);

}  // namespace

HostExecutor::HostExecutor(std::shared_ptr<const Operation> operation, const Header& header, Tag tag,
                           Router& router, Staging& staging)
    : shared_operation_(std::move(operation)),
      operation_(*shared_operation_),
      header_(header),
      tag_(tag),
      world_ranks_(operation_.group->world_ranks),
      plan_(*operation_.plan),
      router_(router),
      staging_(staging),
      layout_(operation_.layout) {
  const DType dtype = operation_.input.dtype;
  const std::int64_t segment = operation_.segment_count;
  segments_per_chunk_ = std::max<std::int64_t>(1, (layout_.largest() + segment - 1) / segment);
  wire_segment_bytes_ = operation_.codec->wire_bytes(std::min(segment, layout_.largest()), dtype);

  progress_.resize(plan_.steps.size());
  for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
    const Step& step = plan_.steps[i].step;
    if (step.op == Op::meet) {
      progress_[i].parts_left = 2 * static_cast<int>(step.peers.size());
    } else {
      progress_[i].segments = std::max<std::int64_t>(1, (layout_.count(step.chunk) + segment - 1) / segment);
    }
  }
  unfinished_ = plan_.steps.size();

  // Incoming lanes first: what has come is taken before more is sent.
  lanes_.reserve(plan_.channels.size());
  for (const bool outgoing : {false, true}) {
    for (const Channel& channel : plan_.channels) {
      if (channel.outgoing != outgoing) continue;
      const int world_peer = world_ranks_[channel.peer];
      Transport& transport = router_.to(world_peer);
      const auto window = static_cast<std::size_t>(router_.pacing(world_peer).window);
      lanes_.push_back(Lane{&channel, &transport, world_peer, header_for(channel), window, 0, 0, false, {}});
    }
  }
  if (plan_.scratch_slots > 0)
    scratch_ =
        staging_.take(plan_.scratch_slots * std::max<std::int64_t>(1, layout_.largest()) * size_of(dtype));
  if (lossy()) {
    kept_ = staging_.take(plan_.chunks * segments_per_chunk_ * wire_segment_bytes_);
    kept_valid_.assign(plan_.chunks * segments_per_chunk_, 0);
  }
  if (!plan_.met.empty()) {
    peer_memory_ = router_.peer_memory(world_ranks_[plan_.met[0]]);
    mirrors_.emplace(*peer_memory_, plan_, layout_, operation_.input, operation_.output);
    peer_regions_.resize(world_ranks_.size());
  }
}

// With parts of chosen sizes each channel's header holds those that travel along it; where peers meet, all.
Header HostExecutor::header_for(const Channel& channel) const {
  Header header = header_;
  if (!layout_.is_chosen()) return header;
  std::vector<std::int64_t> counts;
  for (const int index : channel.steps) {
    const Step& step = plan_.steps[index].step;
    const bool meets = step.op == Op::meet;
    for (int chunk = meets ? 0 : step.chunk; chunk < (meets ? layout_.chunks() : step.chunk + 1); ++chunk)
      counts.push_back(layout_.count(chunk));
  }
  header.describe_parts(counts);
  return header;
}

bool HostExecutor::advance() {
  bool moved = false;
  for (Lane& lane : lanes_) moved |= lane.channel->outgoing ? advance_outgoing(lane) : advance_incoming(lane);
  moved |= advance_local();
  return moved;
}

// --- messages out
// ---------------------------------------------------------------------------------------------

bool HostExecutor::advance_outgoing(Lane& lane) {
  bool moved = false;
  while (!lane.flights.empty() && lane.transport->poll(lane.flights.front().ticket)) {
    const int step = lane.flights.front().step;
    lane.flights.erase(lane.flights.begin());
    if (step >= 0) complete(step);
    moved = true;
  }
  while (lane.flights.size() < lane.window && lane.next < lane.channel->steps.size() && post_send(lane))
    moved = true;
  return moved;
}

bool HostExecutor::post_send(Lane& lane) {
  const int step = lane.channel->steps[lane.next];
  const std::int64_t segment = lane.next_segment;
  const auto bytes = static_cast<std::size_t>(payload_bytes(step, segment));
  Flight flight;
  if (!lane.opened && bytes > kInlineBytes) {
    flight.block = staging_.take(sizeof(Header));
    std::memcpy(flight.block.data(), &lane.header, sizeof(Header));
    flight.ticket = lane.transport->post_send(lane.world_peer, tag_, {flight.block.data(), sizeof(Header)});
    lane.opened = true;
    lane.flights.push_back(std::move(flight));
    return true;
  }
  if (!ready(step, segment)) return false;
  flight.step = step;
  flight.segment = segment;
  flight.wire = payload_of(step, segment, flight.block);
  flight.bytes = bytes;
  if (lane.opened) {
    flight.ticket = lane.transport->post_send(lane.world_peer, tag_, {flight.wire, bytes});
  } else {
    Staging::Block message = staging_.take(static_cast<std::int64_t>(sizeof(Header) + bytes));
    std::memcpy(message.data(), &lane.header, sizeof(Header));
    if (bytes > 0) std::memcpy(message.data() + sizeof(Header), flight.wire, bytes);
    flight.block = std::move(message);
    flight.ticket =
        lane.transport->post_send(lane.world_peer, tag_, {flight.block.data(), sizeof(Header) + bytes});
    lane.opened = true;
  }
  bytes_sent_ += static_cast<std::int64_t>(bytes);
  lane.flights.push_back(std::move(flight));
  step_on(lane);
  return true;
}

std::byte* HostExecutor::payload_of(int index, std::int64_t segment, Staging::Block& block) {
  const Step& step = plan_.steps[index].step;
  if (step.op == Op::meet) return reinterpret_cast<std::byte*>(mirrors_->regions().data());
  const View source = segment_view(step.src, step.chunk, segment);
  const double scale = contribution_scale(step.src);
  const Codec& codec = *operation_.codec;
  if (codec.lossless && scale == 1.0) return source.data;
  if (!codec.lossless && step.src == kOutput) {
    const std::size_t kept = kept_index(step.chunk, segment);
    std::byte* wire = kept_wire(step.chunk, segment);
    if (step.publish && !kept_valid_[kept]) {
      codec.encode(source, wire, scale);
      codec.decode(wire, source);
      kept_valid_[kept] = 1;
    }
    if (kept_valid_[kept]) return wire;
  }
  block = staging_.take(codec.wire_bytes(source.count, source.dtype));
  codec.encode(source, block.data(), scale);
  return block.data();
}

// --- messages in
// ----------------------------------------------------------------------------------------------

bool HostExecutor::advance_incoming(Lane& lane) {
  bool moved = false;
  while (!lane.flights.empty()) {
    Flight& flight = lane.flights.front();
    if (!flight.landed) {
      const auto bytes = lane.transport->poll(flight.ticket);
      if (!bytes) break;
      flight.landed = true;
      land(lane, flight, *bytes);
      moved = true;
    }
    if (!apply(lane, flight)) break;
    lane.flights.erase(lane.flights.begin());
    moved = true;
  }
  while (lane.flights.size() < lane.window && lane.next < lane.channel->steps.size() && post_recv(lane))
    moved = true;
  return moved;
}

bool HostExecutor::post_recv(Lane& lane) {
  if (!lane.opened) {
    if (lane.flights.empty()) post_opening_recv(lane);
    return false;  // nothing else is received before the header has been checked
  }
  const int index = lane.channel->steps[lane.next];
  const Step& step = plan_.steps[index].step;
  Flight flight;
  flight.step = index;
  flight.segment = lane.next_segment;
  flight.bytes = static_cast<std::size_t>(payload_bytes(index, lane.next_segment));
  if (step.op == Op::recv && !is_scratch(step.dst)) {
    if (!ready(index, lane.next_segment)) return false;
    flight.wire = lossy() ? kept_wire(step.chunk, lane.next_segment)
                          : segment_view(step.dst, step.chunk, lane.next_segment).data;
  } else if (step.op == Op::recv && !lossy()) {
    if (!ready(index, lane.next_segment)) return false;
    flight.wire = segment_view(step.dst, step.chunk, lane.next_segment).data;
  } else {
    flight.block = staging_.take(static_cast<std::int64_t>(flight.bytes));
    flight.wire = flight.block.data();
  }
  flight.ticket = lane.transport->post_recv(lane.world_peer, tag_, {flight.wire, flight.bytes});
  lane.flights.push_back(std::move(flight));
  step_on(lane);
  return true;
}

void HostExecutor::post_opening_recv(Lane& lane) {
  Flight flight;
  flight.opening = true;
  flight.block = staging_.take(sizeof(Header) + kInlineBytes);
  flight.ticket =
      lane.transport->post_recv(lane.world_peer, tag_, {flight.block.data(), sizeof(Header) + kInlineBytes});
  lane.flights.push_back(std::move(flight));
}

// Checks what arrived; an opening flight turns into the first segment's when that came along.
void HostExecutor::land(Lane& lane, Flight& flight, std::size_t bytes) {
  if (flight.opening) {
    Header theirs;
    if (bytes < sizeof(Header))
      throw MismatchError(text("rank ", lane.channel->peer, " sent ", bytes, " bytes where a header of ",
                               sizeof(Header), " bytes was expected: its pycomm differs from this one"));
    std::memcpy(&theirs, flight.block.data(), sizeof(Header));
    if (!(theirs == lane.header))
      throw MismatchError(describe_mismatch(lane.channel->peer, theirs, operation_.group->rank, lane.header));
    lane.opened = true;
    const int step = lane.channel->steps[0];
    const auto expected = static_cast<std::size_t>(payload_bytes(step, 0));
    bytes -= sizeof(Header);
    if (expected > kInlineBytes) {
      flight.bytes = 0;
    } else {
      flight.step = step;
      flight.bytes = expected;
      flight.wire = flight.block.data() + sizeof(Header);
      step_on(lane);
    }
  }
  if (bytes != flight.bytes)
    throw MismatchError(text("rank ", lane.channel->peer, " sent ", bytes, " bytes where rank ",
                             operation_.group->rank, " expected ", flight.bytes, ", in ",
                             describe(lane.header)));
}

bool HostExecutor::apply(const Lane& lane, const Flight& flight) {
  if (flight.step < 0) return true;
  const Step& step = plan_.steps[flight.step].step;
  if (step.op == Op::meet) {
    std::memcpy(&peer_regions_[lane.channel->peer], flight.wire, sizeof(peer_regions_[0]));
  } else {
    if (!ready(flight.step, flight.segment)) return false;
    apply_payload(flight);
  }
  complete(flight.step);
  return true;
}

void HostExecutor::apply_payload(const Flight& flight) {
  const Step& step = plan_.steps[flight.step].step;
  const View dst = segment_view(step.dst, step.chunk, flight.segment);
  if (step.op == Op::recv) {
    if (!lossy()) {
      if (flight.wire != dst.data && flight.bytes > 0) std::memcpy(dst.data, flight.wire, flight.bytes);
      return;
    }
    operation_.codec->decode(flight.wire, dst);
    if (is_scratch(step.dst)) return;
    std::byte* kept = kept_wire(step.chunk, flight.segment);
    if (flight.wire != kept && flight.bytes > 0) std::memcpy(kept, flight.wire, flight.bytes);
    kept_valid_[kept_index(step.chunk, flight.segment)] = 1;
    return;
  }
  const View src = segment_view(step.src, step.chunk, flight.segment);
  const double scale = contribution_scale(step.src);
  const Finish finish = finish_of(step);
  if (lossy()) {
    operation_.codec->decode_reduce(dst, src, flight.wire, {scale, finish.scale});
  } else {
    reduce_pair(dst, {src.data, scale}, flight.wire, operation_.op, finish);
  }
  forget_wire(step.dst, step.chunk, flight.segment);
}

// --- steps without messages
// -----------------------------------------------------------------------------------

// Round robin, a segment of each step that is ready: a segment that one step has just written is read by the
// next while it is in the cache. One round where messages travel too: they go on meanwhile.
bool HostExecutor::advance_local() {
  bool moved = false;
  for (bool again = true; again;) {
    again = false;
    for (std::size_t i = local_next_; i < plan_.local.size(); ++i) {
      const int index = plan_.local[i];
      Progress& progress = progress_[index];
      if (progress.done == progress.segments) {
        if (i == local_next_) ++local_next_;
        continue;
      }
      if (!ready(index, progress.done)) continue;
      run_local(index, progress.done);
      complete(index);
      moved = true;
      again = !plan_.messages;
    }
  }
  return moved;
}

void HostExecutor::run_local(int index, std::int64_t segment) {
  const Step& step = plan_.steps[index].step;
  const View dst = segment_view(step.dst, step.chunk, segment);
  std::vector<Operand> operands;
  switch (step.op) {
    case Op::copy:
      copy_operand(dst, {segment_view(step.src, step.chunk, segment).data, contribution_scale(step.src)},
                   finish_of(step));
      break;
    case Op::reduce:
      for (Buffer source : step.sources)
        operands.push_back({segment_view(source, step.chunk, segment).data, contribution_scale(source)});
      reduce_operands(dst, operands, operation_.op, finish_of(step));
      break;
    case Op::reduce_from:
      for (int peer : step.peers)
        operands.push_back(
            {peer_segment_view(peer, step.src, step.chunk, segment).data, contribution_scale(step.src)});
      reduce_operands(dst, operands, operation_.op, finish_of(step));
      break;
    case Op::store_to: {
      const View src = segment_view(step.src, step.chunk, segment);
      for (int peer : step.peers) {
        if (src.count > 0)
          std::memcpy(peer_segment_view(peer, step.dst, step.chunk, segment).data, src.data,
                      static_cast<std::size_t>(src.bytes()));
        bytes_sent_ += src.bytes();
      }
      return;
    }
    default:
      PYCOMM_DCHECK(false);
  }
  forget_wire(step.dst, step.chunk, segment);
}

// --- progress
// -------------------------------------------------------------------------------------------------

void HostExecutor::step_on(Lane& lane) {
  if (++lane.next_segment < progress_[lane.channel->steps[lane.next]].segments) return;
  lane.next_segment = 0;
  ++lane.next;
}

void HostExecutor::complete(int step) {
  Progress& progress = progress_[step];
  if (plan_.steps[step].step.op == Op::meet && --progress.parts_left > 0) return;
  if (++progress.done == progress.segments && --unfinished_ == 0 && mirrors_) mirrors_->copy_out();
}

bool HostExecutor::ready(int index, std::int64_t segment) const {
  const CompiledStep& compiled = plan_.steps[index];
  for (int earlier : compiled.after)
    if (progress_[earlier].done < std::min(segment + 1, progress_[earlier].segments)) return false;
  for (int earlier : compiled.after_all)
    if (progress_[earlier].done < progress_[earlier].segments) return false;
  return true;
}

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
  bool sent = false;
  bool open = false;
  for (std::size_t i = 0; i < progress_.size(); ++i) {
    const Step& step = plan_.steps[i].step;
    if (step.op != Op::meet) continue;
    sent |= progress_[i].parts_left < 2 * static_cast<int>(step.peers.size());
    open = progress_[i].done == 0;
  }
  return sent && open;
}

bool HostExecutor::waits_for(int world_peer) const {
  for (const Lane& lane : lanes_)
    if (lane.world_peer == world_peer && (!lane.flights.empty() || lane.next < lane.channel->steps.size()))
      return true;
  return false;
}

// --- where things lie
// -----------------------------------------------------------------------------------------

View HostExecutor::chunk_view(Buffer buffer, int chunk) const {
  const std::int64_t count = layout_.count(chunk);
  const DType dtype = operation_.input.dtype;
  if (is_scratch(buffer)) {
    const std::int64_t slot_bytes = std::max<std::int64_t>(1, layout_.largest()) * size_of(dtype);
    return {scratch_.data() + (buffer.id - 2) * slot_bytes, count, dtype};
  }
  const View& whole = buffer == kInput ? operation_.input : operation_.output;
  View view = whole.slice(layout_.offset(buffer, chunk), count);
  if (mirrors_) view.data = mirrors_->place(buffer, chunk, view.data);
  return view;
}

View HostExecutor::segment_view(Buffer buffer, int chunk, std::int64_t segment) const {
  const View whole = chunk_view(buffer, chunk);
  const std::int64_t first = segment * operation_.segment_count;
  return whole.slice(first, std::min(operation_.segment_count, whole.count - first));
}

View HostExecutor::peer_segment_view(int peer, Buffer buffer, int chunk, std::int64_t segment) const {
  if (peer == operation_.group->rank) return segment_view(buffer, chunk, segment);
  View view = segment_view(buffer, chunk, segment);
  const std::int64_t first = layout_.offset(buffer, chunk) + segment * operation_.segment_count;
  const int world_peer = world_ranks_[peer];
  std::byte* base = peer_memory_->map(world_peer, peer_regions_[peer][buffer.id]);
  view.data = base + first * size_of(view.dtype);
  return view;
}

std::int64_t HostExecutor::payload_bytes(int index, std::int64_t segment) const {
  const Step& step = plan_.steps[index].step;
  if (step.op == Op::meet) return sizeof(peer_regions_[0]);
  const std::int64_t count =
      std::min(operation_.segment_count, layout_.count(step.chunk) - segment * operation_.segment_count);
  return operation_.codec->wire_bytes(count, operation_.input.dtype);
}

double HostExecutor::contribution_scale(Buffer src) const {
  return src == kInput && reduces(operation_.collective) ? operation_.contribution_scale : 1.0;
}

std::byte* HostExecutor::kept_wire(int chunk, std::int64_t segment) const {
  return kept_.data() + static_cast<std::int64_t>(kept_index(chunk, segment)) * wire_segment_bytes_;
}

void HostExecutor::forget_wire(Buffer dst, int chunk, std::int64_t segment) {
  if (lossy() && dst == kOutput) kept_valid_[kept_index(chunk, segment)] = 0;
}

}  // namespace pycomm
