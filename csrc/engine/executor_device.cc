#include "engine/executor_device.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace pycomm {

DeviceExecutor::DeviceExecutor(std::shared_ptr<const Operation> operation, const Placement& placement,
                               Pieces pieces, const Header& header, Router& router, Staging& staging,
                               PinnedMemory& pinned)
    : operation_(std::move(operation)),
      placement_(placement),
      pieces_(std::move(pieces)),
      header_(header),
      router_(router),
      staging_(staging),
      pinned_(pinned),
      called_(placement.device->make_event(placement.card)),
      caller_(placement.device->borrow_stream(placement.card, placement.stream)) {}

void DeviceExecutor::number(std::uint32_t sequence, std::uint32_t history, Tag tag) {
  sequence_ = sequence;
  history_ = history;
  tag_ = tag;
  unmarked_.clear();
  try {
    caller_->mark(*called_);
  } catch (const Error& error) {
    unmarked_ = error.what();
  }
}

void DeviceExecutor::begin() {
  fetched_ = done_ = back_ = 0;
  bytes_sent_ = 0;
  withdrawn_ = false;
  if (!unmarked_.empty()) throw TransportError(unmarked_);
  Device& device = *placement_.device;
  if (!streams_)
    streams_ = Streams{device.open_stream(placement_.card), device.open_stream(placement_.card),
                       device.make_event(placement_.card), device.make_event(placement_.card)};
  take_cells();
  streams_->in->wait_for(*called_);
  streams_->out->wait_for(*called_);  // a rank that only gets has nothing on the other
}

// The first piece is the largest.
void DeviceExecutor::take_cells() {
  const Layout layout = pieces_.layout(0);
  const std::int64_t element = size_of(operation_->input.dtype);
  const auto room = [&](std::int64_t count) {
    return pinned_.take(*placement_.device, placement_.card, static_cast<std::size_t>(count * element));
  };
  for (int i = 0; i < std::min(kCells, pieces_.count()); ++i) {
    Cell& cell = cells_[i];
    if (!cell.came) {
      cell.came = placement_.device->make_event(placement_.card);
      cell.left = placement_.device->make_event(placement_.card);
    }
    // In place, the larger array holds both.
    const std::int64_t input = layout.input_count(), output = layout.output_count();
    const bool shared = operation_->plan->in_place;
    if (!shared || input >= output) cell.input = room(input);
    if (!shared || input < output) cell.output = room(output);
  }
}

void DeviceExecutor::end() {
  executor_.reset();
  for (Cell& cell : cells_) {
    cell.input.reset();
    cell.output.reset();
  }
}

View DeviceExecutor::input_of(int piece) const {
  const Layout layout = pieces_.layout(piece);
  const View view{cell(piece).input.get(), layout.input_count(), operation_->input.dtype};
  if (view.data) return view;
  const View output = output_of(piece);
  return {output.at(layout.offset(kOutput, operation_->group->rank)), view.count, view.dtype};
}

View DeviceExecutor::output_of(int piece) const {
  const Layout layout = pieces_.layout(piece);
  const View view{cell(piece).output.get(), layout.output_count(), operation_->input.dtype};
  if (view.data) return view;
  const View input = input_of(piece);
  const bool of_parts = has_parts(operation_->collective);
  return {of_parts ? input.at(layout.offset(kInput, operation_->group->rank)) : input.data, view.count,
          view.dtype};
}

bool DeviceExecutor::advance() {
  bool moved = retire();
  moved |= fetch();
  moved |= work();
  return moved;
}

bool DeviceExecutor::fetch() {
  bool moved = false;
  for (; fetched_ < pieces_.count() && fetched_ < back_ + kCells; ++fetched_) {
    const View to = input_of(fetched_);
    const View& from = operation_->input;
    for (const auto& run : pieces_.runs(fetched_, kInput))
      streams_->in->copy(to.at(run.in_piece), from.at(run.in_array),
                         static_cast<std::size_t>(run.count * size_of(to.dtype)));
    streams_->in->mark(*cell(fetched_).came);
    moved = true;
  }
  return moved;
}

bool DeviceExecutor::work() {
  if (done_ == fetched_) return false;
  if (!executor_) {
    if (!cell(done_).came->reached()) return false;
    start(done_);
  }
  bool moved = executor_->advance();
  if (!executor_->finished()) return moved;
  bytes_sent_ += executor_->bytes_sent();
  executor_->end();
  executor_.reset();
  send_back(done_);
  ++done_;
  return true;
}

// Equal tags keep messages in order, so the pieces of a call share its tag: a rank sends of the next one when
// it has all of this one.
void DeviceExecutor::start(int piece) {
  auto operation = std::make_shared<Operation>(*operation_);
  operation->layout = pieces_.layout(piece);
  operation->input = input_of(piece);
  operation->output = output_of(piece);
  auto executor = std::make_unique<HostExecutor>(std::move(operation), header_, router_, staging_);
  executor->number(sequence_, history_, tag_);
  executor->begin();
  executor_ = std::move(executor);
}

void DeviceExecutor::send_back(int piece) {
  const View from = output_of(piece);
  const View& to = operation_->output;
  for (const auto& run : pieces_.runs(piece, kOutput))
    streams_->out->copy(to.at(run.in_array), from.at(run.in_piece),
                        static_cast<std::size_t>(run.count * size_of(from.dtype)));
  streams_->out->mark(*cell(piece).left);
}

bool DeviceExecutor::retire() {
  const int before = back_;
  while (back_ < done_ && cell(back_).left->reached()) ++back_;
  return back_ != before;
}

std::int64_t DeviceExecutor::bytes_sent() const {
  return bytes_sent_ + (executor_ ? executor_->bytes_sent() : 0);
}

std::string DeviceExecutor::waiting_for() const {
  const auto piece = [&](int number) { return text(" piece ", number + 1, " of ", pieces_.count()); };
  if (executor_) return text(executor_->waiting_for(), ", in", piece(done_));
  if (done_ < pieces_.count()) return text(placement_.device->name(), " to bring", piece(done_));
  return text(placement_.device->name(), " to take", piece(back_));
}

bool DeviceExecutor::waits_for(int world_peer) const {
  if (executor_ && executor_->waits_for(world_peer)) return true;
  if (done_ + (executor_ ? 1 : 0) >= pieces_.count()) return false;
  const auto& channels = operation_->plan->channels;
  return std::any_of(channels.begin(), channels.end(), [&](const Channel& channel) {
    return operation_->group->world_ranks[channel.peer] == world_peer;
  });
}

// A copy that has begun cannot be called back.
bool DeviceExecutor::withdraw() {
  if (executor_ && !executor_->withdraw()) return false;
  if (!streams_) return true;
  if (!withdrawn_) {
    streams_->in->mark(*streams_->in_idle);
    streams_->out->mark(*streams_->out_idle);
    withdrawn_ = true;
  }
  return streams_->in_idle->reached() && streams_->out_idle->reached();
}

}  // namespace pycomm
