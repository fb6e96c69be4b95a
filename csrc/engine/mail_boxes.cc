#include "engine/mail_boxes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace pycomm {
namespace {

constexpr std::size_t kPieceAlignment = 64;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
}

}  // namespace

std::vector<std::byte> pack_head(const std::string& head,
                                 const std::vector<std::span<const std::byte>>& pieces) {
  std::vector<std::byte> table(8 * pieces.size() + head.size());
  std::byte* to = table.data();
  for (const auto& piece : pieces) {
    const std::uint64_t bytes = piece.size();
    std::memcpy(std::exchange(to, to + 8), &bytes, 8);
  }
  if (!head.empty()) std::memcpy(to, head.data(), head.size());
  return table;
}

Message::Message(std::span<const std::byte> table, std::size_t piece_count, std::size_t payload_bytes) {
  if (piece_count > table.size() / 8)
    throw TransportError(
        text("a torn message: ", piece_count, " pieces in a head of ", table.size(), " bytes"));
  std::vector<std::uint64_t> sizes(piece_count);
  if (piece_count > 0) std::memcpy(sizes.data(), table.data(), 8 * piece_count);
  std::size_t left = payload_bytes;
  for (const std::uint64_t size : sizes) {
    if (size > left)
      throw TransportError(text("a torn message: its pieces exceed ", payload_bytes, " bytes"));
    left -= size;
    memory_bytes_ += aligned(size);
  }
  if (left != 0) throw TransportError(text("a torn message: its pieces end ", left, " bytes early"));
  const auto rest = table.subspan(8 * piece_count);
  head_.assign(reinterpret_cast<const char*>(rest.data()), rest.size());
  memory_bytes_ = std::max(memory_bytes_, kPieceAlignment);
  memory_.reset(static_cast<std::byte*>(::operator new(memory_bytes_, kAlignment)));
  pieces_.reserve(piece_count);
  std::size_t offset = 0;
  for (const std::uint64_t size : sizes) {
    pieces_.emplace_back(memory_.get() + offset, size);
    offset += aligned(size);
  }
}

void MailBoxes::expect(const std::shared_ptr<Arrival>& arrival) {
  const std::lock_guard lock(mutex_);
  Lane& lane = boxes_[arrival->box][arrival->source];
  if (!lane.held.admits(arrival->bytes))
    throw TransportError(text("rank ", arrival->source, " sent ", arrival->bytes, " bytes to mailbox ",
                              arrival->box.tag, " beyond its credit"));
  ++lane.held.messages;
  lane.held.bytes += arrival->bytes;
  lane.queue.push_back(arrival);
}

void MailBoxes::complete(Arrival& arrival) {
  const std::lock_guard lock(mutex_);
  arrival.complete = true;
  number(boxes_[arrival.box][arrival.source]);
}

void MailBoxes::number(Lane& lane) {
  for (const auto& arrival : lane.queue) {
    if (!arrival->complete) return;
    if (arrival->number == 0) arrival->number = ++numbered_;
  }
}

void MailBoxes::drop(const std::shared_ptr<Arrival>& arrival) {
  const std::lock_guard lock(mutex_);
  Lane& lane = boxes_[arrival->box][arrival->source];
  std::erase(lane.queue, arrival);
  number(lane);
}

void MailBoxes::clear(std::uint32_t context) {
  const std::lock_guard lock(mutex_);
  std::erase_if(boxes_, [&](const auto& entry) { return entry.first.context == context; });
}

void MailBoxes::depart(int peer) {
  const std::lock_guard lock(mutex_);
  departed_.insert(peer);
}

// The lane with the earliest complete message; null when there is none.
const std::pair<const int, MailBoxes::Lane>* MailBoxes::first(const BoxId& id, int source) const {
  const auto box = boxes_.find(id);
  if (box == boxes_.end()) return nullptr;
  const std::pair<const int, Lane>* best = nullptr;
  for (const auto& entry : box->second) {
    const auto& queue = entry.second.queue;
    if ((source != kAnyone && entry.first != source) || queue.empty() || !queue.front()->complete) continue;
    if (!best || queue.front()->number < best->second.queue.front()->number) best = &entry;
  }
  return best;
}

bool MailBoxes::has(const BoxId& id, int source) const {
  const std::lock_guard lock(mutex_);
  return first(id, source) != nullptr;
}

std::optional<Delivery> MailBoxes::take(const BoxId& id, int source) {
  const std::lock_guard lock(mutex_);
  const auto* const found = first(id, source);
  if (!found) return std::nullopt;
  Lane& lane = boxes_[id][found->first];
  const auto arrival = lane.queue.front();
  lane.queue.pop_front();
  ++lane.received.messages;
  lane.received.bytes += arrival->bytes;
  // The sender waits, or is near it.
  const bool full = lane.held.messages >= kMailMessages || lane.held.bytes > kMailBytes / 4 * 3;
  const bool due =
      full || lane.received.messages >= kMailMessages / 4 || lane.received.bytes > kMailBytes / 4;
  if (due) {
    due_.push_back({id, arrival->source, lane.received});
    lane.held.messages -= lane.received.messages;
    lane.held.bytes -= lane.received.bytes;
    lane.received = {};
  }
  return Delivery{arrival->source, std::move(arrival->message), due};
}

std::string MailBoxes::hopeless(const BoxId& id, int source, const Group& group) const {
  const std::lock_guard lock(mutex_);
  if (departed_.empty()) return "";
  const auto box = boxes_.find(id);
  const auto gone = [&](int peer) {
    if (!departed_.contains(peer)) return false;
    if (box == boxes_.end()) return true;
    const auto lane = box->second.find(peer);
    return lane == box->second.end() || lane->second.queue.empty();
  };
  if (source != kAnyone)
    return gone(source) ? text("world rank ", source, " has left: it ended or called shutdown()") : "";
  const int self = group.world_ranks[group.rank];
  for (const int peer : group.world_ranks)
    if (peer != self && !gone(peer)) return "";
  if (group.size() == 1) return "";  // another thread may send
  return "all other ranks have left: they ended or called shutdown()";
}

std::set<std::uint32_t> MailBoxes::contexts() const {
  const std::lock_guard lock(mutex_);
  std::set<std::uint32_t> contexts;
  for (const auto& [id, box] : boxes_) contexts.insert(id.context);
  return contexts;
}

std::vector<MailCredit> MailBoxes::due_credits() {
  const std::lock_guard lock(mutex_);
  return std::exchange(due_, {});
}

}  // namespace pycomm
