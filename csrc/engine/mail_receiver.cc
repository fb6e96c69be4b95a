#include "engine/mail_receiver.h"

#include <algorithm>

#include "core/error.h"
#include "engine/farewell.h"

namespace pycomm {
namespace {

constexpr std::uint64_t kHighestBytes = std::uint64_t{1} << 47;  // what a process can address

}  // namespace

MailReceiver::MailReceiver(MailPlane& plane, MailBoxes& boxes)
    : plane_(plane), boxes_(boxes), links_(plane.size()) {}

// ---- frames

void MailReceiver::letter(int peer, const MailFrame& frame, std::span<const std::byte> body) {
  if (frame.head_bytes > body.size() || frame.payload_bytes != body.size() - frame.head_bytes)
    throw TransportError(text("rank ", peer, " sent a torn message of ", body.size(), " bytes"));
  const auto arrival = std::make_shared<Arrival>(frame.box(), peer, body.size());
  arrival->message =
      std::make_unique<Message>(body.first(frame.head_bytes), frame.count, frame.payload_bytes);
  auto rest = body.subspan(frame.head_bytes);
  for (const auto& piece : arrival->message->pieces()) {
    std::copy_n(rest.begin(), piece.size(), piece.begin());
    rest = rest.subspan(piece.size());
  }
  plane_.note(frame.context);
  boxes_.expect(arrival);
  boxes_.complete(*arrival);
}

void MailReceiver::announcement(int peer, const MailFrame& frame) {
  const std::uint64_t bytes = frame.head_bytes + frame.payload_bytes;
  if (bytes < frame.payload_bytes || bytes > kHighestBytes)
    throw TransportError(text("rank ", peer, " announced a message of ", frame.head_bytes, " and ",
                              frame.payload_bytes, " bytes: there is no room for a message of that size"));
  if (frame.segment_bytes == 0 || frame.head_bytes == 0)
    throw TransportError(text("rank ", peer, " announced a message without a head, or in segments of none"));
  const auto receiving = std::make_shared<Receiving>();
  receiving->arrival = std::make_shared<Arrival>(frame.box(), peer, bytes);
  receiving->sequence = frame.sequence;
  receiving->segment_bytes = frame.segment_bytes;
  receiving->piece_count = frame.count;
  receiving->payload_bytes = frame.payload_bytes;
  receiving->bytes_left = bytes;
  plane_.note(frame.context);
  boxes_.expect(receiving->arrival);
  links_[peer].stream.push(receiving);
  under_way_.fetch_add(1, std::memory_order_relaxed);
  try {
    receiving->head.resize(frame.head_bytes);
    receiving->cutter.parts = {receiving->head};
  } catch (const std::exception&) {  // std::bad_alloc: this message alone is lost
    receiving->broken = true;
    plane_.break_context(
        frame.context, {ErrorKind::internal,
                        text("from rank ", peer, ": no memory for a head of ", frame.head_bytes, " bytes")});
  }
}

// ---- passes

void MailReceiver::owe(const MailCredit& due) {
  if (!plane_.departed(due.peer)) links_[due.peer].credits[due.box].add(due.received);
}

bool MailReceiver::advance(int peer) {
  if (!active(peer)) return false;
  const bool posted = post_credits(peer);
  const bool moved = receive_segments(peer);
  if (moved) links_[peer].in_vain = {};
  return moved || posted;
}

bool MailReceiver::post_credits(int peer) {
  auto& credits = links_[peer].credits;
  bool moved = false;
  while (!credits.empty() && plane_.room(peer)) {
    const auto credit = credits.extract(credits.begin());
    MailFrame frame{
        .type = MailFrame::Type::credit, .tag = credit.key().tag, .context = credit.key().context};
    frame.count = static_cast<std::uint32_t>(credit.mapped().messages);
    frame.payload_bytes = credit.mapped().bytes;
    plane_.post(peer, frame, {});
    moved = true;
  }
  return moved;
}

bool MailReceiver::receive_segments(int peer) {
  MailStream<Receiving>& stream = links_[peer].stream;
  if (stream.empty()) return false;
  Transport& transport = plane_.router().to(peer);
  const auto broken = [&](const Receiving& receiving, const std::string& what) {
    plane_.break_context(receiving.context(), {ErrorKind::transport, text("from rank ", peer, ": ", what)});
  };
  const auto landed = [&](Receiving& receiving) { land(receiving); };
  const auto post = [&](Tag tag, auto segment) { return transport.post_recv(peer, tag, segment); };
  const auto known = [](const Receiving& receiving) { return receiving.arrival->message != nullptr; };
  const bool moved = stream.poll(transport, landed, broken);
  return stream.post(plane_.router().pacing(peer).window, post, known, broken) || moved;
}

void MailReceiver::land(Receiving& receiving) {
  Arrival& arrival = *receiving.arrival;
  if (!arrival.message && receiving.bytes_left == receiving.payload_bytes) {  // the head is here
    arrival.message =
        std::make_unique<Message>(receiving.head, receiving.piece_count, receiving.payload_bytes);
    receiving.cutter = {arrival.message->pieces()};
  }
  if (receiving.bytes_left > 0) return;
  boxes_.complete(arrival);
  under_way_.fetch_sub(1, std::memory_order_relaxed);
}

// ---- ends other than well

// What is complete in the boxes of a communicator that is over goes with them, not here.
bool MailReceiver::sweep(Clock::duration looked) {
  bool lost = false;
  for (int peer = 0; peer < plane_.size(); ++peer) {
    Link& link = links_[peer];
    if (link.stream.empty()) continue;
    if (plane_.departed(peer)) link.in_vain += looked;
    for (const auto& receiving : link.stream.all()) {
      if (link.in_vain <= kFarewell && !receiving->broken && !plane_.broken(receiving->context())) continue;
      lose(peer, receiving);
      lost = true;
    }
  }
  return lost;
}

void MailReceiver::lose(int peer, const std::shared_ptr<Receiving>& receiving) {
  plane_.withdraw(links_[peer].stream, receiving, peer);
  boxes_.drop(receiving->arrival);
  under_way_.fetch_sub(1, std::memory_order_relaxed);
}

void MailReceiver::stop() {
  for (int peer = 0; peer < plane_.size(); ++peer)
    for (const auto& receiving : links_[peer].stream.all()) lose(peer, receiving);
}

}  // namespace pycomm
