// What both directions of the mail between ranks stand on: control frames, counted; who has left; which
// communicators have mail; memory that a transport still uses.
//
// Transports bound the frames that a rank leaves unread. So each pair has a window of frames; a frame says
// how many of the other's frames have been read, and a receipt says it when there is nothing else to say.
//
// Threads: the driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "engine/driver.h"
#include "engine/mail_boxes.h"
#include "engine/mail_stream.h"
#include "engine/service.h"

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

  BoxId box() const { return {context, tag}; }
};
static_assert(sizeof(MailFrame) == 40);

class MailPlane {
 public:
  static constexpr std::size_t kBodyBytes = Driver::kFrameBytes - sizeof(MailFrame);

  explicit MailPlane(const ServiceContext& context);

  Router& router() const { return router_; }
  int size() const { return static_cast<int>(peers_.size()); }

  // ---- frames

  // Whether another one may go to this peer, and how many it has not looked at.
  bool room(int peer) const { return !departed(peer) && unread(peer) < window_; }
  std::uint32_t unread(int peer) const { return peers_[peer].sent - peers_[peer].sent_read; }
  // False when it is lost, with all that hangs on it: what uses mailboxes here breaks.
  bool post(int peer, MailFrame frame, std::span<const std::byte> body);
  // The frame that came. Throws TransportError when it makes no sense.
  MailFrame read(int peer, std::span<const std::byte> bytes);
  // Says that frames have been read where that is due.
  void acknowledge(int peer);

  // ---- ranks that have left

  void depart(int peer) { peers_[peer].departed = true; }
  bool departed(int peer) const { return peers_[peer].departed; }

  // ---- communicators

  // One has mail.
  void note(std::uint32_t context) { contexts_.insert(context); }
  void break_group(Group& group, const Failure& failure) { driver_.break_group(group, failure); }
  // The sweep then ends its messages.
  void break_context(std::uint32_t context, const Failure& failure);
  void break_all(const Failure& failure);
  bool broken(std::uint32_t context) const { return driver_.failure(context).has_value(); }
  // Whether nothing can come of its mail any more: it is broken, or nobody here holds it.
  bool over(std::uint32_t context) const { return broken(context) || driver_.gone(context); }
  // Those with mail that are over; each is said once.
  std::vector<std::uint32_t> take_over();
  // Whether one was broken since this was last asked.
  bool take_upset() { return std::exchange(upset_, false); }

  // ---- memory of messages that were given up

  template <class Owner>
  void withdraw(MailStream<Owner>& stream, const std::shared_ptr<Owner>& owner, int peer) {
    stream.remove(owner, router_.to(peer), pinned_);
    retire_pinned();
  }
  // True when no transport uses any of it.
  bool retire_pinned();
  bool uses_memory() const { return !pinned_.empty(); }

 private:
  struct Peer {
    bool departed = false;
    // Frames, counted modulo 2^32.
    std::uint32_t sent = 0;
    std::uint32_t sent_read = 0;  // by the peer
    std::uint32_t read = 0;
    std::uint32_t read_told = 0;
  };

  Driver& driver_;
  Router& router_;
  const std::uint8_t kind_;
  const std::uint32_t window_;
  std::vector<Peer> peers_;  // by world rank
  std::set<std::uint32_t> contexts_;
  bool upset_ = false;
  std::vector<PinnedMail> pinned_;
};

}  // namespace pycomm
