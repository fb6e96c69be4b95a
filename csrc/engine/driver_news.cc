// Control frames: those of services, and what ranks tell each other outside operations.
#include <algorithm>
#include <array>
#include <cstring>

#include "core/error.h"
#include "engine/driver.h"

namespace pycomm {
namespace {

constexpr std::uint8_t kNoticeKind = 0;

}  // namespace

// What ranks tell each other outside operations: a communicator broke (kind, then the reason), or the sender
// leaves.
struct Driver::Notice {
  static constexpr std::uint32_t kLeaving = ~0u;  // in place of a context
  std::uint32_t context = 0;
  ErrorKind kind = ErrorKind::aborted;
  std::string what;

  std::vector<std::byte> pack() const {
    std::size_t length = std::min(what.size(), kFrameBytes - 8);
    if (length < what.size())  // not within a character of UTF-8
      while (length > 0 && (static_cast<unsigned char>(what[length]) & 0xC0) == 0x80) --length;
    std::vector<std::byte> bytes(8 + length);
    const auto kind_code = static_cast<std::uint32_t>(kind);
    std::memcpy(bytes.data(), &context, 4);
    std::memcpy(bytes.data() + 4, &kind_code, 4);
    std::memcpy(bytes.data() + 8, what.data(), length);
    return bytes;
  }

  static Notice unpack(std::span<const std::byte> bytes) {
    PYCOMM_DCHECK(bytes.size() >= 8);
    Notice notice;
    std::uint32_t kind_code = 0;
    std::memcpy(&notice.context, bytes.data(), 4);
    std::memcpy(&kind_code, bytes.data() + 4, 4);
    notice.kind = static_cast<ErrorKind>(kind_code);
    notice.what.assign(reinterpret_cast<const char*>(bytes.data() + 8), bytes.size() - 8);
    return notice;
  }
};

bool Driver::send_news() {
  std::vector<std::pair<std::shared_ptr<Group>, Failure>> news;
  {
    const std::lock_guard lock(mutex_);
    news.swap(outbox_);
  }
  for (const auto& [group, failure] : news) break_group(*group, failure);
  return !news.empty();
}

void Driver::tell_peers(const Group& group, const Failure& failure) {
  const Notice notice{group.context, failure.kind, failure.what};
  for (int peer : group.world_ranks) post_notice(peer, notice);
}

void Driver::post_notice(int peer, const Notice& notice) {
  if (peer == router_.rank()) return;
  try {
    post_frame(kNoticeKind, peer, notice.pack());
  } catch (const Error&) {
    // That peer cannot be reached: it will find out by its own deadline. Our own caller learns the first
    // cause.
  }
}

void Driver::post_frame(std::uint8_t kind, int peer, std::span<const std::byte> bytes) {
  PYCOMM_DCHECK(bytes.size() <= kFrameBytes);
  std::array<std::byte, kControlBytes> frame;
  frame[0] = std::byte{kind};
  std::copy(bytes.begin(), bytes.end(), frame.begin() + 1);
  router_.to(peer).post_control(peer, std::span(frame).first(bytes.size() + 1));
}

bool Driver::read_control() {
  ControlFrame frame;
  bool any = false;
  while (router_.poll_control(&frame)) {
    any = true;
    PYCOMM_DCHECK(!frame.bytes.empty());
    const auto kind = std::to_integer<std::size_t>(frame.bytes[0]);
    const auto bytes = std::span<const std::byte>(frame.bytes).subspan(1);
    PYCOMM_DCHECK(kind <= services_.size());
    if (kind == kNoticeKind)
      read_notice(frame.peer, bytes);
    else
      services_[kind - 1]->frame(frame.peer, bytes);
  }
  while (const auto peer = router_.poll_departure()) {
    any = true;
    departed(*peer);
  }
  return any;
}

void Driver::read_notice(int peer, std::span<const std::byte> bytes) {
  const Notice notice = Notice::unpack(bytes);
  if (notice.context == Notice::kLeaving) {
    departed(peer);
    return;
  }
  fail_locally(notice.context, {notice.kind, notice.what});
}

// It has said so, or a transport has noticed.
void Driver::departed(int peer) {
  if (!left_.emplace(peer, Clock::now()).second) return;
  for (const auto& service : services_) service->departed(peer);
}

std::shared_ptr<Group> Driver::fail_locally(std::uint32_t context, const Failure& failure) {
  const std::lock_guard lock(mutex_);
  const auto found = groups_.find(context);
  if (found == groups_.end()) absent_failures_.emplace(context, failure);
  return found != groups_.end() && found->second->fail(failure) ? found->second : nullptr;
}

std::optional<Failure> Driver::failure(std::uint32_t context) {
  const std::lock_guard lock(mutex_);
  if (const auto found = groups_.find(context); found != groups_.end()) return found->second->failure();
  const auto absent = absent_failures_.find(context);
  return absent == absent_failures_.end() ? std::nullopt : std::optional(absent->second);
}

bool Driver::gone(std::uint32_t context) {
  const std::lock_guard lock(mutex_);
  forget_unheld();
  return context <= newest_ && !groups_.contains(context);
}

void Driver::break_group(Group& group, const Failure& failure) {
  if (group.fail(failure)) tell_peers(group, failure);
}

void Driver::break_context(std::uint32_t context, const Failure& failure) {
  if (const auto group = fail_locally(context, failure)) tell_peers(*group, failure);
}

void Driver::say_goodbye() {
  for (int peer = 0; peer < router_.size(); ++peer)
    post_notice(peer, {Notice::kLeaving, ErrorKind::aborted, {}});
}

}  // namespace pycomm
