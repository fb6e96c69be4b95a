// Messages that have come to this rank and wait to be received.
//
// Back-pressure: of one sender, a box holds at most kMailMessages messages and kMailBytes bytes that nobody
// has received; both ends count. A message that alone exceeds the bytes is let through when at most a quarter
// of them is held. Each credit is a frame, so receiving gives it back in quarters, and at once only when the
// box is nearly full for the sender. Up to a quarter may so be free without the sender's knowing it, which is
// why a quarter does not hold up a large message.
//
// Threads: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/group.h"

namespace pycomm {

inline constexpr std::size_t kMailMessages = 64;
inline constexpr std::size_t kMailBytes = std::size_t{16} << 20;

struct BoxId {
  std::uint32_t context = 0;
  std::uint16_t tag = 0;
  auto operator<=>(const BoxId&) const = default;
};

// What one sender has in one box that has not been received, as one of the two ends counts it.
struct MailHeld {
  std::size_t messages = 0;
  std::size_t bytes = 0;

  bool admits(std::size_t size) const {
    return messages < kMailMessages && (bytes <= kMailBytes / 4 || bytes + size <= kMailBytes);
  }
  bool empty() const { return messages == 0 && bytes == 0; }
  bool covers(const MailHeld& part) const { return part.messages <= messages && part.bytes <= bytes; }
  void add(const MailHeld& part) {
    messages += part.messages;
    bytes += part.bytes;
  }
  void remove(const MailHeld& part) {
    messages -= part.messages;
    bytes -= part.bytes;
  }
};

// A message as its receiver gets it: the head, and the pieces in one allocation, each aligned.
class Message {
 public:
  // `table` is as pack_head() makes it. Throws TransportError when the sizes in it do not fit together.
  Message(std::span<const std::byte> table, std::size_t piece_count, std::size_t payload_bytes);

  const std::string& head() const { return head_; }
  const std::vector<std::span<std::byte>>& pieces() const { return pieces_; }
  std::span<std::byte> memory() const { return {memory_.get(), memory_bytes_}; }  // all pieces; never empty

 private:
  static constexpr std::size_t kAlignment = 64;
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
  };
  std::string head_;
  std::vector<std::span<std::byte>> pieces_;
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t memory_bytes_ = 0;
};

// What goes before the pieces: their sizes (u64 each), then the sender's own head.
std::vector<std::byte> pack_head(const std::string& head,
                                 const std::vector<std::span<const std::byte>>& pieces);

// A message that is coming or has come.
struct Arrival {
  Arrival(BoxId box, int source, std::size_t bytes) : box(box), source(source), bytes(bytes) {}

  const BoxId box;
  const int source;         // world rank
  const std::size_t bytes;  // head and payload
  std::unique_ptr<Message> message;
  bool complete = false;
  std::uint64_t number = 0;  // in the order of coming, once all earlier ones of its source are complete too
};

struct MailCredit {
  BoxId box;
  int peer = 0;
  MailHeld received;
};

struct Delivery {
  int source = 0;  // world rank
  std::unique_ptr<Message> message;
  bool credit_due = false;  // the sender should be told
};

class MailBoxes {
 public:
  static constexpr int kAnyone = -1;

  // Gives the next message of its source its place. Throws TransportError when it is beyond the credit.
  void expect(const std::shared_ptr<Arrival>& arrival);
  // All of it is here.
  void complete(Arrival& arrival);
  // It will not come any more.
  void drop(const std::shared_ptr<Arrival>& arrival);
  // The communicator is broken or gone: all its mail goes.
  void clear(std::uint32_t context);
  void depart(int peer);
  // So many more, or fewer, messages are on their way from this rank to a box of its own.
  void expect_own(const BoxId& id, int change);

  // The earliest message from `source`, a world rank, or from anyone.
  std::optional<Delivery> take(const BoxId& id, int source);
  bool has(const BoxId& id, int source) const;
  // Why nothing more will come: the ranks that it could come from have left. Empty: something may. From
  // anyone means from any other rank, and what this one has sent itself already: whoever waits for another
  // thread of this rank names it as the source.
  std::string hopeless(const BoxId& id, int source, const Group& group) const;
  // Whether anything in them has not been received.
  bool hold_mail() const;

  // Credits that their senders should be given; each is said once.
  std::vector<MailCredit> due_credits();

 private:
  struct Lane {
    std::deque<std::shared_ptr<Arrival>> queue;  // in the order sent
    MailHeld held;                               // as the sender counts it
    MailHeld received;                           // of those, what it does not know yet
  };
  using Box = std::map<int, Lane>;  // by source

  Lane* find(const BoxId& id, int source);
  void number(Lane& lane);
  const std::pair<const int, Lane>* first(const BoxId& id, int source) const;
  bool give_back(const BoxId& id, int source, Lane& lane);

  mutable std::mutex mutex_;
  std::map<BoxId, Box> boxes_;  // with the lanes that hold something, by their senders' count
  std::map<BoxId, int> own_;    // see expect_own()
  std::uint64_t numbered_ = 0;
  std::set<int> departed_;
  std::vector<MailCredit> due_;
  std::size_t unreceived_ = 0;  // messages in all lanes
};

}  // namespace pycomm
