#include "engine/mail_service.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace pycomm {

// Before the body of a frame; little-endian. The body of a letter is its head and its pieces.
struct MailFrame {
  enum class Type : std::uint8_t { receipt, letter, announcement, credit };
  Type type = Type::receipt;
  std::uint8_t unused = 0;
  std::uint16_t tag = 0;
  std::uint32_t context = 0;
  std::uint32_t read = 0;           // frames of the receiver that the sender has read
  std::uint32_t count = 0;          // pieces; of a credit: messages received
  std::uint64_t head_bytes = 0;     // with the table of pieces
  std::uint64_t payload_bytes = 0;  // of a credit: bytes received
  std::uint32_t sequence = 0;       // of announcements to this rank
  std::uint32_t segment_bytes = 0;
};

namespace {

static_assert(sizeof(MailFrame) == 40);
constexpr std::size_t kBodyBytes = Driver::kFrameBytes - sizeof(MailFrame);

// Frames unread in all by one rank, or sent by one and unread, for as long as ranks are few enough.
constexpr std::uint32_t kUnreadFrames = 512;
constexpr std::uint64_t kHighestBytes = std::uint64_t{1} << 47;  // what a process can address
constexpr std::chrono::milliseconds kSweep{1};                   // between looks at deadlines and failures
// What a rank sent before its goodbye arrives within this.
constexpr std::chrono::seconds kFarewell{1};

std::uint32_t frame_window(int size) {
  return std::clamp(kUnreadFrames / static_cast<std::uint32_t>(std::max(1, size - 1)), 2u, 32u);
}

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

const Register<ServiceEntry> kMail({.name = "mail",
                                    .create = [](const ServiceContext& context) -> std::unique_ptr<Service> {
                                      return std::make_unique<MailService>(context);
                                    }});

}  // namespace

MailService::MailService(const ServiceContext& context)
    : driver_(context.driver),
      router_(context.router),
      kind_(context.kind),
      frame_window_(frame_window(context.router.size())),
      links_(context.router.size()) {
  for (std::size_t peer = 0; peer < links_.size(); ++peer) links_[peer].peer = static_cast<int>(peer);
}

void MailService::submit(Outgoing message) {
  auto sending = std::make_shared<Sending>();
  sending->bytes_left = message.bytes();
  sending->message = std::move(message);
  const std::lock_guard lock(mutex_);
  if (stopped_) throw Aborted("the engine has been shut down");
  inbox_.push_back(std::move(sending));
  under_way_.fetch_add(1, std::memory_order_relaxed);
  given_.store(true, std::memory_order_relaxed);  // the mutex orders what is behind the hint
}

// ---- passes

bool MailService::advance() {
  if (given_.load(std::memory_order_relaxed)) collect();
  if (quiet_) return false;
  bool moved = false;
  for (Link& link : links_) {
    if (!link.active()) continue;
    if (link.peer == router_.rank()) {
      moved |= keep_to_ourselves(link);
    } else {
      moved |= post_frames(link);
      moved |= send_segments(link);
      moved |= receive_segments(link);
    }
  }
  const auto now = Clock::now();
  if (now - swept_ > kSweep) {
    swept_ = now;
    sweep(now);
    retire_pinned();
  }
  quiet_ = pinned_.empty() && std::none_of(links_.begin(), links_.end(), [](auto& l) { return l.active(); });
  return moved;
}

void MailService::collect() {
  given_.store(false, std::memory_order_relaxed);  // what comes from now on sets it again
  std::vector<std::shared_ptr<Sending>> given;
  {
    const std::lock_guard lock(mutex_);
    given.swap(inbox_);
  }
  for (auto& sending : given) {
    Link& link = links_[sending->message.peer];
    link.lanes[sending->message.box].waiting.push_back(std::move(sending));
    ++link.waiting;
  }
  for (const MailCredit& due : boxes_.due_credits()) {
    if (links_[due.peer].departed) continue;
    MailHeld& owed = links_[due.peer].credits[due.box];
    owed.messages += due.received.messages;
    owed.bytes += due.received.bytes;
  }
  quiet_ = false;
}

bool MailService::keep_to_ourselves(Link& link) {
  for (const auto& [box, received] : std::exchange(link.credits, {})) credit(link, box, received);
  bool moved = false;
  for (auto& [box, lane] : link.lanes) {
    while (lane.admits_first()) {
      const auto sending = take_first(link, box, lane);
      try {
        deliver_here(sending->message);
        finish(*sending, std::nullopt);
      } catch (const std::exception& error) {  // std::bad_alloc
        const Failure failure{ErrorKind::internal, error.what()};
        break_context(box.context, failure);
        finish(*sending, failure);
      }
      moved = true;
    }
  }
  return moved;
}

void MailService::deliver_here(const Outgoing& message) {
  const auto arrival = std::make_shared<Arrival>(message.box, message.peer, message.bytes());
  arrival->message = std::make_unique<Message>(message.head, message.pieces.size(), message.payload_bytes);
  for (std::size_t i = 0; i < message.pieces.size(); ++i)
    std::copy(message.pieces[i].begin(), message.pieces[i].end(), arrival->message->pieces()[i].begin());
  boxes_.expect(arrival);
  boxes_.complete(*arrival);
}

std::shared_ptr<MailService::Sending> MailService::take_first(Link& link, const BoxId& box, Lane& lane) {
  const auto sending = lane.waiting.front();
  lane.waiting.pop_front();
  --link.waiting;
  link.last = box;
  ++lane.held.messages;
  lane.held.bytes += sending->message.bytes();
  sending->message.work->start(Clock::now());
  return sending;
}

// ---- frames

// Credits first, then a message of each box in turn.
bool MailService::post_frames(Link& link) {
  bool moved = false;
  while (!link.credits.empty() && room(link)) {
    const auto credit = link.credits.extract(link.credits.begin());
    MailFrame frame{
        .type = MailFrame::Type::credit, .tag = credit.key().tag, .context = credit.key().context};
    frame.count = static_cast<std::uint32_t>(credit.mapped().messages);
    frame.payload_bytes = credit.mapped().bytes;
    post_counted(link, frame, {});
    moved = true;
  }
  auto at = link.lanes.upper_bound(link.last);
  for (std::size_t blocked = 0; blocked < link.lanes.size() && link.waiting > 0 && room(link); ++at) {
    if (at == link.lanes.end()) at = link.lanes.begin();
    if (!at->second.admits_first()) {
      ++blocked;
      continue;
    }
    launch(link, take_first(link, at->first, at->second));
    moved = true;
    blocked = 0;
  }
  return moved;
}

void MailService::launch(Link& link, const std::shared_ptr<Sending>& sending) {
  const Outgoing& message = sending->message;
  MailFrame frame{.tag = message.box.tag, .context = message.box.context};
  frame.count = static_cast<std::uint32_t>(message.pieces.size());
  frame.head_bytes = message.head.size();
  frame.payload_bytes = message.payload_bytes;
  if (message.bytes() <= kBodyBytes) {
    frame.type = MailFrame::Type::letter;
    std::array<std::byte, kBodyBytes> body;
    auto end = std::copy(message.head.begin(), message.head.end(), body.begin());
    for (const auto& piece : message.pieces) end = std::copy(piece.begin(), piece.end(), end);
    const bool posted = post_counted(link, frame, std::span(body).first(message.bytes()));
    finish(*sending, posted ? std::nullopt : message.group->failure());
    return;
  }
  frame.type = MailFrame::Type::announcement;
  frame.sequence = sending->sequence = link.announced++;
  sending->segment_bytes = static_cast<std::size_t>(router_.pacing(link.peer).segment_bytes);
  frame.segment_bytes = static_cast<std::uint32_t>(sending->segment_bytes);
  sending->cutter.parts = {message.head};
  sending->cutter.parts.insert(sending->cutter.parts.end(), message.pieces.begin(), message.pieces.end());
  link.sending.push(sending);
  post_counted(link, frame, {});
}

bool MailService::post_counted(Link& link, const MailFrame& frame, std::span<const std::byte> body) {
  ++link.sent;
  return post(link, frame, body);
}

// A frame that cannot be posted is lost, with all that hangs on it: what uses mailboxes here breaks.
bool MailService::post(Link& link, MailFrame frame, std::span<const std::byte> body) {
  if (link.departed) return false;
  frame.read = link.read_told = link.read;
  std::array<std::byte, Driver::kFrameBytes> bytes;
  std::memcpy(bytes.data(), &frame, sizeof(frame));
  std::copy(body.begin(), body.end(), bytes.begin() + sizeof(frame));
  try {
    driver_.post_frame(kind_, link.peer, std::span(bytes).first(sizeof(frame) + body.size()));
    return true;
  } catch (const Error& error) {
    failed({error.kind(), error.what()});
    return false;
  }
}

void MailService::frame(int peer, std::span<const std::byte> bytes) {
  MailFrame frame;
  if (bytes.size() < sizeof(frame) || peer < 0 || peer >= static_cast<int>(links_.size()))
    throw TransportError(text("rank ", peer, " sent a torn mailbox frame of ", bytes.size(), " bytes"));
  std::memcpy(&frame, bytes.data(), sizeof(frame));
  Link& link = links_[peer];
  link.sent_read = frame.read;
  quiet_ = false;
  if (frame.type == MailFrame::Type::receipt) return;
  ++link.read;
  accept(link, frame, bytes.subspan(sizeof(frame)));
  if (link.read - link.read_told >= std::max(1u, frame_window_ / 2)) post(link, {}, {});
}

void MailService::accept(Link& link, const MailFrame& frame, std::span<const std::byte> body) {
  const BoxId box{frame.context, frame.tag};
  switch (frame.type) {
    case MailFrame::Type::letter: {
      if (frame.head_bytes > body.size() || frame.payload_bytes != body.size() - frame.head_bytes)
        throw TransportError(text("rank ", link.peer, " sent a torn message of ", body.size(), " bytes"));
      const auto arrival = std::make_shared<Arrival>(box, link.peer, body.size());
      arrival->message =
          std::make_unique<Message>(body.first(frame.head_bytes), frame.count, frame.payload_bytes);
      auto rest = body.subspan(frame.head_bytes);
      for (const auto& piece : arrival->message->pieces()) {
        std::copy_n(rest.begin(), piece.size(), piece.begin());
        rest = rest.subspan(piece.size());
      }
      boxes_.expect(arrival);
      boxes_.complete(*arrival);
      return;
    }
    case MailFrame::Type::announcement:
      return expect(link, frame);
    case MailFrame::Type::credit:
      return credit(link, box, {frame.count, frame.payload_bytes});
    case MailFrame::Type::receipt:
      break;
  }
  throw TransportError(
      text("rank ", link.peer, " sent a mailbox frame of unknown type ", static_cast<int>(frame.type)));
}

void MailService::expect(Link& link, const MailFrame& frame) {
  const std::uint64_t bytes = frame.head_bytes + frame.payload_bytes;
  if (bytes < frame.payload_bytes || bytes > kHighestBytes)
    throw TransportError(text("rank ", link.peer, " announced a message of ", frame.head_bytes, " and ",
                              frame.payload_bytes, " bytes: there is no room for a message of that size"));
  if (frame.segment_bytes == 0 || frame.head_bytes == 0)
    throw TransportError(
        text("rank ", link.peer, " announced a message without a head, or in segments of none"));
  const auto receiving = std::make_shared<Receiving>();
  receiving->arrival = std::make_shared<Arrival>(BoxId{frame.context, frame.tag}, link.peer, bytes);
  receiving->sequence = frame.sequence;
  receiving->segment_bytes = frame.segment_bytes;
  receiving->piece_count = frame.count;
  receiving->payload_bytes = frame.payload_bytes;
  receiving->bytes_left = bytes;
  receiving->head.resize(frame.head_bytes);
  boxes_.expect(receiving->arrival);
  receiving->cutter.parts = {receiving->head};
  link.receiving.push(receiving);
  under_way_.fetch_add(1, std::memory_order_relaxed);
}

void MailService::credit(Link& link, const BoxId& box, const MailHeld& received) {
  MailHeld& held = link.lanes[box].held;
  if (received.messages > held.messages || received.bytes > held.bytes)
    throw TransportError(
        text("rank ", link.peer, " has received more from mailbox ", box.tag, " than was sent"));
  held.messages -= received.messages;
  held.bytes -= received.bytes;
}

// ---- segments

bool MailService::send_segments(Link& link) {
  if (link.sending.empty()) return false;
  Transport& transport = router_.to(link.peer);
  const auto broken = [&](const Sending& sending, const std::string& what) {
    break_context(sending.context(), {ErrorKind::transport, text("to rank ", link.peer, ": ", what)});
  };
  const auto landed = [&](Sending& sending) {
    if (sending.bytes_left == 0) finish(sending, std::nullopt);
  };
  const auto post = [&](Tag tag, auto segment) { return transport.post_send(link.peer, tag, segment); };
  const auto known = [](const Sending&) { return true; };
  const bool moved = link.sending.poll(transport, landed, broken);
  return link.sending.post(router_.pacing(link.peer).window, post, known, broken) || moved;
}

bool MailService::receive_segments(Link& link) {
  if (link.receiving.empty()) return false;
  Transport& transport = router_.to(link.peer);
  const auto broken = [&](Receiving& receiving, const std::string& what) {
    receiving.broken = true;
    break_context(receiving.context(), {ErrorKind::transport, text("from rank ", link.peer, ": ", what)});
  };
  const auto landed = [&](Receiving& receiving) { land(receiving); };
  const auto post = [&](Tag tag, auto segment) { return transport.post_recv(link.peer, tag, segment); };
  const auto known = [](const Receiving& receiving) { return receiving.arrival->message != nullptr; };
  const bool moved = link.receiving.poll(transport, landed, broken);
  return link.receiving.post(router_.pacing(link.peer).window, post, known, broken) || moved;
}

void MailService::land(Receiving& receiving) {
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

void MailService::departed(int peer) {
  links_[peer].departed = true;
  links_[peer].departed_at = Clock::now();
  links_[peer].credits.clear();
  boxes_.depart(peer);
  quiet_ = false;
}

void MailService::failed(const Failure& failure) {
  std::set<std::uint32_t> contexts = boxes_.contexts();
  for (const Link& link : links_)
    for (const auto& [box, lane] : link.lanes) contexts.insert(box.context);
  for (const std::uint32_t context : contexts) break_context(context, failure);
}

// The sweep then ends its messages.
void MailService::break_context(std::uint32_t context, const Failure& failure) {
  driver_.break_context(context, failure);
  quiet_ = false;
  swept_ = {};
}

void MailService::sweep(Clock::time_point now) {
  for (Link& link : links_) {
    for (auto& [box, lane] : link.lanes)
      for (const auto& sending : std::deque(lane.waiting)) give_up_on(link, sending, now);
    for (const auto& sending : link.sending.all()) give_up_on(link, sending, now);
    for (const auto& receiving : link.receiving.all()) {
      const auto group = driver_.group(receiving->arrival->box.context);
      const bool late = link.departed && now - link.departed_at > kFarewell;
      if (late || receiving->broken || (group && group->failure())) lose(link, receiving);
    }
  }
}

// If there is a reason to. A message that has not been announced leaves no trace; one that has breaks its
// communicator, unless its receiver is gone.
void MailService::give_up_on(Link& link, const std::shared_ptr<Sending>& sending, Clock::time_point now) {
  const Outgoing& message = sending->message;
  Failure failure;
  const auto broken = message.group->failure();
  const auto abandoned = message.work->abandoned();
  if (broken)
    failure = *broken;
  else if (link.departed)
    failure = {ErrorKind::aborted,
               text("world rank ", link.peer, " has left: it ended or called shutdown()")};
  else if (abandoned)
    failure = {ErrorKind::aborted, *abandoned};
  else if (seconds(now - message.work->submitted()) >= message.timeout_s)
    failure = {ErrorKind::timeout,
               text("no end after ", message.timeout_s, " s: ", waits_for(link, *sending))};
  else
    return;
  if (!broken)
    failure.what = text("send of ", message.bytes(), " bytes to rank ", message.rank, ", mailbox ",
                        message.box.tag, ", failed on rank ", message.group->rank, ": ", failure.what);
  auto& waiting = link.lanes[message.box].waiting;
  if (std::erase(waiting, sending) > 0) {
    --link.waiting;
  } else {
    if (!broken && !link.departed) driver_.break_group(*message.group, failure);
    link.sending.remove(sending, router_.to(link.peer), pinned_);
    retire_pinned();
  }
  finish(*sending, failure);
}

std::string MailService::waits_for(const Link& link, const Sending& sending) const {
  const Outgoing& message = sending.message;
  if (link.sending.holds(sending))
    return text("rank ", message.rank, " has taken ", message.bytes() - sending.bytes_left, " bytes of it");
  const Lane& lane = link.lanes.at(message.box);
  if (lane.waiting.front().get() != &sending) return "waiting for earlier messages to it";
  if (!lane.held.admits(message.bytes()))
    return text("rank ", message.rank, " has not received ", lane.held.messages,
                " earlier messages of mailbox ", message.box.tag, " (", lane.held.bytes, " bytes)");
  return text("rank ", message.rank, " has not looked at ", link.sent - link.sent_read,
              " earlier frames: it is in no call of pycomm");
}

void MailService::finish(Sending& sending, std::optional<Failure> failure) {
  const auto bytes = failure ? 0 : static_cast<std::int64_t>(sending.message.payload_bytes);
  under_way_.fetch_sub(1, std::memory_order_relaxed);
  sending.message.work->finish(std::move(failure), bytes);
}

void MailService::lose(Link& link, const std::shared_ptr<Receiving>& receiving) {
  link.receiving.remove(receiving, router_.to(link.peer), pinned_);
  retire_pinned();
  boxes_.drop(receiving->arrival);
  under_way_.fetch_sub(1, std::memory_order_relaxed);
}

void MailService::retire_pinned() {
  std::erase_if(pinned_, [](const PinnedMail& pinned) {
    try {
      return pinned.transport->poll(pinned.ticket) || pinned.transport->cancel(pinned.ticket);
    } catch (const Error&) {
      return false;  // a transport that cannot even tell keeps the memory
    }
  });
}

bool MailService::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  collect();
  const Failure failure{ErrorKind::aborted, "the engine was shut down while a message was on its way"};
  for (Link& link : links_) {
    for (auto& [box, lane] : link.lanes)
      for (const auto& sending : std::exchange(lane.waiting, {})) finish(*sending, failure);
    link.waiting = 0;
    for (const auto& sending : link.sending.all()) {
      link.sending.remove(sending, router_.to(link.peer), pinned_);
      finish(*sending, failure);
    }
    for (const auto& receiving : link.receiving.all()) lose(link, receiving);
  }
  retire_pinned();
  return pinned_.empty();
}

}  // namespace pycomm
