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

HostExecutor::HostExecutor(std::shared_ptr<const Operation> operation, const Header& header, Router& router,
                           Staging& staging)
    : shared_operation_(std::move(operation)),
      operation_(*shared_operation_),
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
    if (step.op != Op::meet)
      progress_[i].segments = std::max<std::int64_t>(1, (layout_.count(step.chunk) + segment - 1) / segment);
  }

  lanes_.reserve(plan_.channels.size());
  for (const bool outgoing : {false, true}) {
    if (outgoing) first_out_ = lanes_.size();
    for (const Channel& channel : plan_.channels) {
      if (channel.outgoing != outgoing) continue;
      const int world_peer = world_ranks_[channel.peer];
      const auto window = static_cast<std::size_t>(router_.pacing(world_peer).window);
      lanes_.push_back(Lane{.channel = &channel,
                            .world_peer = world_peer,
                            .header = header_for(channel, header),
                            .window = window});
    }
  }
}

void HostExecutor::number(std::uint32_t sequence, std::uint32_t history, Tag tag) {
  tag_ = tag;
  for (Lane& lane : lanes_) {
    lane.header.sequence = sequence;
    lane.header.history = history;
  }
}

void HostExecutor::begin() {
  for (std::size_t i = 0; i < progress_.size(); ++i) {
    const Step& step = plan_.steps[i].step;
    progress_[i].done = 0;
    progress_[i].parts_left = step.op == Op::meet ? 2 * static_cast<int>(step.peers.size()) : 0;
  }
  for (Lane& lane : lanes_) {
    lane.transport = &router_.to(lane.world_peer);
    lane.next = 0;
    lane.next_segment = 0;
    lane.opened = false;
  }
  told_ = false;
  local_next_ = 0;
  unfinished_ = plan_.steps.size();
  bytes_sent_ = 0;

  const DType dtype = operation_.input.dtype;
  if (plan_.scratch_slots > 0)
    scratch_ =
        staging_.take(plan_.scratch_slots * std::max<std::int64_t>(1, layout_.largest()) * size_of(dtype));
  if (lossy()) {
    kept_ = staging_.take(plan_.chunks * segments_per_chunk_ * wire_segment_bytes_);
    kept_valid_.assign(plan_.chunks * segments_per_chunk_, 0);
  }
  if (!plan_.met.empty()) {
    const std::int64_t held = operation_.input.bytes() + (plan_.in_place ? 0 : operation_.output.bytes());
    large_ = held * (std::ssize(plan_.met) + 1) > last_cache_bytes();
    peer_memory_ = router_.peer_memory(world_ranks_[plan_.met[0]]);
    lender_.emplace(*peer_memory_, plan_, layout_, operation_.input, operation_.output,
                    operation_.segment_count, large_ ? Results::streamed : Results::cached);
    borrowers_.resize(world_ranks_.size());
  }
}

void HostExecutor::end() {
  scratch_ = {};
  kept_ = {};
  lender_.reset();
}

// With parts of chosen sizes each channel's header holds those that travel along it; where peers meet, all.
Header HostExecutor::header_for(const Channel& channel, Header header) const {
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
  // What has come is taken, worked on and passed on at once.
  bool moved = false;
  for (std::size_t i = 0; i < first_out_; ++i) moved |= advance_incoming(lanes_[i]);
  moved |= advance_local();
  for (std::size_t i = first_out_; i < lanes_.size(); ++i) moved |= advance_outgoing(lanes_[i]);
  return moved;
}

// --- messages out
// ---------------------------------------------------------------------------------------------

bool HostExecutor::advance_outgoing(Lane& lane) {
  bool moved = retire_sent(lane);
  while (lane.flights.size() < lane.window && lane.next < lane.channel->steps.size() && post_send(lane)) {
    moved = true;
    retire_sent(lane);  // short messages are often done at once
  }
  return moved;
}

bool HostExecutor::retire_sent(Lane& lane) {
  bool moved = false;
  while (!lane.flights.empty() && lane.transport->poll(lane.flights.front().ticket)) {
    const int step = lane.flights.front().step;
    lane.flights.erase(lane.flights.begin());
    if (step >= 0) complete(step);
    moved = true;
  }
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
  told_ |= plan_.steps[step].step.op == Op::meet;
  bytes_sent_ += static_cast<std::int64_t>(bytes);
  lane.flights.push_back(std::move(flight));
  step_on(lane);
  return true;
}

std::byte* HostExecutor::payload_of(int index, std::int64_t segment, Staging::Block& block) {
  const Step& step = plan_.steps[index].step;
  if (step.op == Op::meet) return reinterpret_cast<std::byte*>(&lender_->lent());
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
    Lent lent;
    std::memcpy(&lent, flight.wire, sizeof(lent));
    borrowers_[lane.channel->peer] = Borrower(*peer_memory_, lane.world_peer, lent);
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
  Staging::Block own;
  const Operand src = operand_of(step.src, step.chunk, flight.segment, own);
  const Finish finish = finish_of(step);
  if (lossy()) {
    const View acc{const_cast<std::byte*>(src.data), dst.count, dst.dtype};
    operation_.codec->decode_reduce(dst, acc, flight.wire, {src.scale, finish.scale});
  } else {
    reduce_pair(dst, src, flight.wire, operation_.op, finish);
  }
  settle(step, flight.segment);
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
      if (!ready(index, progress.done) || !granted(plan_.steps[index].step, progress.done)) continue;
      run_local(index, progress.done);
      complete(index);
      moved = true;
      again = !plan_.messages;
    }
    if (lender_ && lender_->serve()) {
      moved = true;
      again = !plan_.messages;
    }
  }
  return moved;
}

void HostExecutor::run_local(int index, std::int64_t segment) {
  const Step& step = plan_.steps[index].step;
  const View dst = segment_view(step.dst, step.chunk, segment);
  const auto add = step.pairwise ? reduce_pairwise : reduce_operands;
  Staging::Block own;
  operands_.clear();
  switch (step.op) {
    case Op::copy:
      copy_operand(dst, operand_of(step.src, step.chunk, segment, own), finish_of(step), results_of(index));
      break;
    case Op::reduce:
      for (Buffer source : step.sources) operands_.push_back(operand_of(source, step.chunk, segment, own));
      add(dst, operands_, operation_.op, finish_of(step), Results::cached);
      break;
    case Op::reduce_from:
      for (int peer : step.peers)
        operands_.push_back(
            {peer_segment(peer, step.src, step.chunk, segment), contribution_scale(step.src)});
      add(dst, operands_, operation_.op, finish_of(step), results_of(index));
      give_back(index, segment);
      break;
    case Op::store_to: {
      const View src = segment_view(step.src, step.chunk, segment);
      for (int peer : step.peers) {
        View there = src;
        there.data = peer_segment(peer, step.dst, step.chunk, segment);
        copy_operand(there, {src.data}, {}, results_at(peer, step));
        bytes_sent_ += src.bytes();
      }
      return give_back(index, segment);
    }
    default:
      PYCOMM_DCHECK(false);
  }
  settle(step, segment);
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
  if (++progress.done == progress.segments && --unfinished_ == 0 && lender_) lender_->finish();
}

bool HostExecutor::ready(int index, std::int64_t segment) const {
  const CompiledStep& compiled = plan_.steps[index];
  for (int earlier : compiled.after)
    if (progress_[earlier].done < std::min(segment + 1, progress_[earlier].segments)) return false;
  for (int earlier : compiled.after_all)
    if (progress_[earlier].done < progress_[earlier].segments) return false;
  return true;
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
  if (lender_) view.data = lender_->place(buffer, chunk, view.data);
  return view;
}

View HostExecutor::segment_view(Buffer buffer, int chunk, std::int64_t segment) const {
  const View whole = chunk_view(buffer, chunk);
  const std::int64_t first = segment * operation_.segment_count;
  return whole.slice(first, std::min(operation_.segment_count, whole.count - first));
}

std::int64_t HostExecutor::payload_bytes(int index, std::int64_t segment) const {
  const Step& step = plan_.steps[index].step;
  if (step.op == Op::meet) return sizeof(Lent);
  const std::int64_t count =
      std::min(operation_.segment_count, layout_.count(step.chunk) - segment * operation_.segment_count);
  return operation_.codec->wire_bytes(count, operation_.input.dtype);
}

double HostExecutor::contribution_scale(Buffer src) const {
  return src == kInput && reduces(operation_.collective) ? operation_.contribution_scale : 1.0;
}

}  // namespace pycomm
