#include "engine/mail_boxes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "engine/farewell.h"

namespace pycomm {

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
  const auto aligned = [](std::size_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; };
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
  memory_bytes_ = std::max(memory_bytes_, kAlignment);
  memory_.reset(static_cast<std::byte*>(::operator new(memory_bytes_, std::align_val_t{kAlignment})));
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
  lane.held.add({1, arrival->bytes});
  lane.queue.push_back(arrival);
  ++unreceived_;
}

// Null where nothing is held, and when the box has been cleared.
MailBoxes::Lane* MailBoxes::find(const BoxId& id, int source) {
  const auto box = boxes_.find(id);
  if (box == boxes_.end()) return nullptr;
  const auto lane = box->second.find(source);
  return lane == box->second.end() ? nullptr : &lane->second;
}

void MailBoxes::complete(Arrival& arrival) {
  const std::lock_guard lock(mutex_);
  arrival.complete = true;
  if (Lane* const lane = find(arrival.box, arrival.source)) number(*lane);
}

void MailBoxes::number(Lane& lane) {
  for (const auto& arrival : lane.queue) {
    if (!arrival->complete) return;
    if (arrival->number == 0) arrival->number = ++numbered_;
  }
}

void MailBoxes::drop(const std::shared_ptr<Arrival>& arrival) {
  const std::lock_guard lock(mutex_);
  Lane* const lane = find(arrival->box, arrival->source);
  if (!lane) return;
  unreceived_ -= std::erase(lane->queue, arrival);
  number(*lane);
}

void MailBoxes::clear(std::uint32_t context) {
  const std::lock_guard lock(mutex_);
  std::erase_if(boxes_, [&](const auto& entry) {
    if (entry.first.context != context) return false;
    for (const auto& [source, lane] : entry.second) unreceived_ -= lane.queue.size();
    return true;
  });
}

void MailBoxes::depart(int peer) {
  const std::lock_guard lock(mutex_);
  departed_.insert(peer);
}

void MailBoxes::expect_own(const BoxId& id, int change) {
  const std::lock_guard lock(mutex_);
  if ((own_[id] += change) == 0) own_.erase(id);
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
  Lane& lane = *find(id, found->first);
  const auto arrival = lane.queue.front();
  lane.queue.pop_front();
  --unreceived_;
  lane.received.add({1, arrival->bytes});
  const bool due = give_back(id, arrival->source, lane);
  return Delivery{arrival->source, std::move(arrival->message), due};
}

// Whether what was received is due to the sender; the lane may be gone afterwards.
bool MailBoxes::give_back(const BoxId& id, int source, Lane& lane) {
  // The sender waits, or is near it.
  const bool full = lane.held.messages >= kMailMessages || lane.held.bytes > kMailBytes / 4 * 3;
  if (!full && lane.received.messages < kMailMessages / 4 && lane.received.bytes <= kMailBytes / 4)
    return false;
  due_.push_back({id, source, lane.received});
  lane.held.remove(std::exchange(lane.received, {}));
  if (!lane.held.empty()) return true;
  const auto box = boxes_.find(id);
  box->second.erase(source);
  if (box->second.empty()) boxes_.erase(box);
  return true;
}

std::string MailBoxes::hopeless(const BoxId& id, int source, const Group& group) const {
  const std::lock_guard lock(mutex_);
  if (departed_.empty()) return "";
  const auto box = boxes_.find(id);
  const auto here = [&](int peer) {
    if (box == boxes_.end()) return false;
    const auto lane = box->second.find(peer);
    return lane != box->second.end() && !lane->second.queue.empty();
  };
  const auto gone = [&](int peer) { return departed_.contains(peer) && !here(peer); };
  if (source != kAnyone) return gone(source) ? has_left(source) : "";
  const int self = group.world_ranks[group.rank];
  for (const int peer : group.world_ranks)
    if (peer != self && !gone(peer)) return "";
  if (group.size() == 1 || here(self) || own_.contains(id)) return "";
  return "all other ranks have left: they ended or called shutdown()";
}

bool MailBoxes::hold_mail() const {
  const std::lock_guard lock(mutex_);
  return unreceived_ > 0;
}

std::vector<MailCredit> MailBoxes::due_credits() {
  const std::lock_guard lock(mutex_);
  return std::exchange(due_, {});
}

}  // namespace pycomm
