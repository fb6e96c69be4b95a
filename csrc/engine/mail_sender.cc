#include "engine/mail_sender.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.h"
#include "engine/farewell.h"

namespace pycomm {

MailHeld MailSender::Link::held_by(const BoxId& box) const {
  const auto found = held.find(box);
  return found == held.end() ? MailHeld{} : found->second;
}

bool MailSender::Link::admits_first(const BoxId& box, const Queue& queue) const {
  return held_by(box).admits(queue.front()->message.bytes());
}

MailSender::MailSender(MailPlane& plane, MailBoxes& boxes)
    : plane_(plane), boxes_(boxes), links_(plane.size()) {}

void MailSender::submit(Outgoing message) {
  auto sending = std::make_shared<Sending>();
  sending->bytes_left = message.bytes();
  sending->message = std::move(message);
  const bool own = sending->message.peer == plane_.router().rank();
  const BoxId box = sending->message.box;
  const std::lock_guard lock(mutex_);
  if (stopped_) throw Aborted("the engine has been shut down");
  if (own) boxes_.expect_own(box, +1);
  inbox_.push_back(std::move(sending));
  under_way_.fetch_add(1, std::memory_order_relaxed);
}

void MailSender::collect() {
  std::vector<std::shared_ptr<Sending>> given;
  {
    const std::lock_guard lock(mutex_);
    given.swap(inbox_);
  }
  for (auto& sending : given) {
    const Outgoing& message = sending->message;
    plane_.note(message.box.context);
    links_[message.peer].waiting[message.box].push_back(std::move(sending));
  }
}

bool MailSender::advance(int peer) {
  if (!active(peer)) return false;
  const bool launched = launch_in_turn(peer);
  return send_segments(peer) || launched;
}

// A message of each box in turn.
bool MailSender::launch_in_turn(int peer) {
  Link& link = links_[peer];
  bool moved = false;
  for (std::size_t blocked = 0; blocked < link.waiting.size() && plane_.room(peer);) {
    auto at = link.waiting.upper_bound(link.last);
    if (at == link.waiting.end()) at = link.waiting.begin();
    link.last = at->first;
    if (!link.admits_first(at->first, at->second)) {
      ++blocked;
      continue;
    }
    const auto sending = take_first(link, at);
    if (peer == plane_.router().rank())
      keep(sending);
    else
      launch(peer, sending);
    moved = true;
    blocked = 0;
  }
  return moved;
}

std::shared_ptr<MailSender::Sending> MailSender::take_first(Link& link, Waiting::iterator at) {
  const auto sending = at->second.front();
  at->second.pop_front();
  if (at->second.empty()) link.waiting.erase(at);
  link.held[sending->message.box].add({1, sending->message.bytes()});
  sending->message.work->start(Clock::now());
  return sending;
}

// ---- to this rank itself

void MailSender::keep(const std::shared_ptr<Sending>& sending) {
  try {
    deliver_here(sending->message);
    finish(*sending, std::nullopt);
  } catch (const std::exception& error) {  // std::bad_alloc
    const Failure failure{ErrorKind::internal, error.what()};
    plane_.break_context(sending->context(), failure);
    finish(*sending, failure);
  }
}

void MailSender::deliver_here(const Outgoing& message) {
  const auto arrival = std::make_shared<Arrival>(message.box, message.peer, message.bytes());
  arrival->message = std::make_unique<Message>(message.head, message.pieces.size(), message.payload_bytes);
  for (std::size_t i = 0; i < message.pieces.size(); ++i)
    std::copy(message.pieces[i].begin(), message.pieces[i].end(), arrival->message->pieces()[i].begin());
  boxes_.expect(arrival);
  boxes_.complete(*arrival);
}

// ---- to others

void MailSender::launch(int peer, const std::shared_ptr<Sending>& sending) {
  const Outgoing& message = sending->message;
  MailFrame frame{.tag = message.box.tag, .context = message.box.context};
  frame.count = static_cast<std::uint32_t>(message.pieces.size());
  frame.head_bytes = message.head.size();
  frame.payload_bytes = message.payload_bytes;
  if (message.bytes() <= MailPlane::kBodyBytes) {
    frame.type = MailFrame::Type::letter;
    std::array<std::byte, MailPlane::kBodyBytes> body;
    auto end = std::copy(message.head.begin(), message.head.end(), body.begin());
    for (const auto& piece : message.pieces) end = std::copy(piece.begin(), piece.end(), end);
    const bool posted = plane_.post(peer, frame, std::span(body).first(message.bytes()));
    finish(*sending, posted ? std::nullopt : message.group->failure());
    return;
  }
  Link& link = links_[peer];
  frame.type = MailFrame::Type::announcement;
  frame.sequence = sending->sequence = link.announced++;
  sending->segment_bytes = static_cast<std::size_t>(plane_.router().pacing(peer).segment_bytes);
  frame.segment_bytes = static_cast<std::uint32_t>(sending->segment_bytes);
  sending->cutter.parts = {message.head};
  sending->cutter.parts.insert(sending->cutter.parts.end(), message.pieces.begin(), message.pieces.end());
  link.stream.push(sending);
  plane_.post(peer, frame, {});
}

bool MailSender::send_segments(int peer) {
  MailStream<Sending>& stream = links_[peer].stream;
  if (stream.empty()) return false;
  Transport& transport = plane_.router().to(peer);
  const auto broken = [&](const Sending& sending, const std::string& what) {
    plane_.break_context(sending.context(), {ErrorKind::transport, text("to rank ", peer, ": ", what)});
  };
  const auto landed = [&](Sending& sending) {
    if (sending.bytes_left == 0) finish(sending, std::nullopt);
  };
  const auto post = [&](Tag tag, auto segment) { return transport.post_send(peer, tag, segment); };
  const auto known = [](const Sending&) { return true; };
  const bool moved = stream.poll(transport, landed, broken);
  return stream.post(plane_.router().pacing(peer).window, post, known, broken) || moved;
}

// What this rank may still hold of a context that is over has been forgotten.
void MailSender::credit(int peer, const BoxId& box, const MailHeld& received) {
  Link& link = links_[peer];
  const auto at = link.held.find(box);
  if (at == link.held.end() && plane_.over(box.context)) return;
  if (at == link.held.end() || !at->second.covers(received))
    throw TransportError(text("rank ", peer, " has received more from mailbox ", box.tag, " than was sent"));
  at->second.remove(received);
  if (at->second.empty()) link.held.erase(at);
}

// ---- ends other than well

bool MailSender::sweep(Clock::time_point now) {
  bool ended = false;
  for (int peer = 0; peer < plane_.size(); ++peer)
    if (active(peer)) ended |= sweep(peer, now);
  return ended;
}

// A message that has not been announced leaves no trace; one that has breaks its communicator, unless its
// receiver is gone.
bool MailSender::sweep(int peer, Clock::time_point now) {
  Link& link = links_[peer];
  bool ended = false;
  for (auto at = link.waiting.begin(); at != link.waiting.end();) {
    Queue& queue = at->second;
    for (std::size_t i = 0; i < queue.size();) {
      const auto failure = reason_to_end(peer, *queue[i], now);
      if (!failure) {
        ++i;
        continue;
      }
      finish(*queue[i], failure);
      queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(i));
      ended = true;
    }
    at = queue.empty() ? link.waiting.erase(at) : std::next(at);
  }
  if (link.stream.empty()) return ended;
  for (const auto& sending : link.stream.all()) {
    const auto failure = reason_to_end(peer, *sending, now);
    if (!failure) continue;
    if (!plane_.departed(peer)) plane_.break_group(*sending->message.group, *failure);
    plane_.withdraw(link.stream, sending, peer);
    finish(*sending, failure);
    ended = true;
  }
  return ended;
}

std::optional<Failure> MailSender::reason_to_end(int peer, const Sending& sending,
                                                 Clock::time_point now) const {
  const Outgoing& message = sending.message;
  if (const auto broken = message.group->failure()) return broken;
  Failure failure{ErrorKind::aborted, {}};
  if (plane_.departed(peer))
    failure.what = has_left(peer);
  else if (const auto abandoned = message.work->abandoned())
    failure.what = *abandoned;
  else if (seconds(now - message.work->submitted()) >= message.timeout_s)
    failure = {ErrorKind::timeout,
               text("no end within the timeout of ", message.timeout_s, " s: ", waits_for(peer, sending))};
  else
    return std::nullopt;
  failure.what = text("send of ", message.bytes(), " bytes to rank ", message.rank, ", mailbox ",
                      message.box.tag, ", failed on rank ", message.group->rank, ": ", failure.what);
  return failure;
}

std::string MailSender::waits_for(int peer, const Sending& sending) const {
  const Link& link = links_[peer];
  const Outgoing& message = sending.message;
  if (link.stream.holds(sending))
    return text("rank ", message.rank, " has taken ", message.bytes() - sending.bytes_left, " bytes of it");
  if (link.waiting.at(message.box).front().get() != &sending) return "waiting for earlier messages to it";
  if (const MailHeld held = link.held_by(message.box); !held.admits(message.bytes()))
    return text("rank ", message.rank, " has not received ", held.messages, " earlier messages of mailbox ",
                message.box.tag, " (", held.bytes, " bytes)");
  return text("rank ", message.rank, " has not looked at ", plane_.unread(peer),
              " earlier frames: it is in no call of pycomm");
}

void MailSender::finish(Sending& sending, std::optional<Failure> failure) {
  const Outgoing& message = sending.message;
  const auto bytes = failure ? 0 : static_cast<std::int64_t>(message.payload_bytes);
  if (message.peer == plane_.router().rank()) boxes_.expect_own(message.box, -1);
  under_way_.fetch_sub(1, std::memory_order_relaxed);
  message.work->finish(std::move(failure), bytes, Clock::now());
}

void MailSender::forget(std::uint32_t context) {
  for (Link& link : links_)
    std::erase_if(link.held, [&](const auto& entry) { return entry.first.context == context; });
}

void MailSender::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  collect();
  const Failure failure{ErrorKind::aborted, "the engine was shut down while a message was on its way"};
  for (int peer = 0; peer < plane_.size(); ++peer) {
    Link& link = links_[peer];
    for (const auto& [box, queue] : std::exchange(link.waiting, {}))
      for (const auto& sending : queue) finish(*sending, failure);
    for (const auto& sending : link.stream.all()) {
      plane_.withdraw(link.stream, sending, peer);
      finish(*sending, failure);
    }
  }
}

}  // namespace pycomm
