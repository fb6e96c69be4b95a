#include "engine/mail_service.h"

#include <algorithm>

#include "core/error.h"

namespace pycomm {
namespace {

constexpr std::chrono::milliseconds kSweep{1};  // between looks at deadlines and failures
// So much of the time between two looks at most counts as looking.
constexpr std::chrono::milliseconds kLook{10};

const Register<ServiceEntry> kMail({.name = "mail",
                                    .create = [](const ServiceContext& context) -> std::unique_ptr<Service> {
                                      return std::make_unique<MailService>(context);
                                    }});

}  // namespace

void MailService::submit(Outgoing message) {
  sender_.submit(std::move(message));
  given_.store(true, std::memory_order_relaxed);  // the mutex orders what is behind the hint
}

void MailService::frame(int peer, std::span<const std::byte> bytes) {
  quiet_ = false;
  const MailFrame frame = plane_.read(peer, bytes);
  const auto body = bytes.subspan(sizeof(frame));
  switch (frame.type) {
    case MailFrame::Type::receipt:
      return;
    case MailFrame::Type::letter:
      receiver_.letter(peer, frame, body);
      break;
    case MailFrame::Type::announcement:
      receiver_.announcement(peer, frame);
      break;
    case MailFrame::Type::credit:
      sender_.credit(peer, frame.box(), {frame.count, frame.payload_bytes});
      break;
  }
  plane_.acknowledge(peer);
}

// ---- passes

bool MailService::advance() {
  if (given_.load(std::memory_order_relaxed)) collect();
  if (quiet_) return false;
  bool moved = false;
  for (int peer = 0; peer < plane_.size(); ++peer) {
    moved |= receiver_.advance(peer);
    moved |= sender_.advance(peer);
  }
  const auto now = Clock::now();
  if (plane_.take_upset() || now - swept_ > kSweep) moved |= sweep(now);
  quiet_ = !active();
  return moved;
}

void MailService::collect() {
  given_.store(false, std::memory_order_relaxed);  // what comes from now on sets it again
  sender_.collect();
  for (const MailCredit& due : boxes_.due_credits()) {
    if (due.peer == plane_.router().rank())
      sender_.credit(due.peer, due.box, due.received);
    else
      receiver_.owe(due);
  }
  quiet_ = false;
}

// Mail that nobody has received needs looks too: its communicator may go.
bool MailService::active() const {
  for (int peer = 0; peer < plane_.size(); ++peer)
    if (receiver_.active(peer) || sender_.active(peer)) return true;
  return plane_.uses_memory() || boxes_.hold_mail();
}

bool MailService::sweep(Clock::time_point now) {
  const auto looked = std::min<Clock::duration>(now - std::exchange(swept_, now), kLook);
  const bool ended = sender_.sweep(now);
  const bool lost = receiver_.sweep(looked);
  for (const std::uint32_t context : plane_.take_over()) {
    boxes_.clear(context);
    sender_.forget(context);
  }
  plane_.retire_pinned();
  return ended || lost;
}

// ---- ends other than well

void MailService::departed(int peer) {
  plane_.depart(peer);
  receiver_.depart(peer);
  boxes_.depart(peer);
  quiet_ = false;
}

void MailService::failed(const Failure& failure) {
  plane_.break_all(failure);
  quiet_ = false;
}

bool MailService::stop() {
  sender_.stop();
  receiver_.stop();
  return plane_.retire_pinned();
}

}  // namespace pycomm
