// The messages that go: kept until their box has credit, then sent.
//
// Small ones travel in a control frame. Of a larger one a frame announces the sizes; then the head and each
// piece follow from the sender's memory, cut into segments, on tags of the mail plane. Per peer the announced
// messages form one stream, in order, with the window of the pair; what is announced has its credit
// (mail_boxes.h), so the stream never waits for anybody to receive, and a slow box holds up no other.
//
// Threads: submit() and under_way() by anyone; the rest by the driver.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/mail_boxes.h"
#include "engine/mail_plane.h"
#include "engine/mail_stream.h"

namespace pycomm {

// A message as its sender gives it. The memory of the pieces must live and stay as it is until `work` is
// done.
struct Outgoing {
  std::shared_ptr<Work> work;
  std::shared_ptr<Group> group;
  BoxId box;
  int peer = 0;                 // world rank
  int rank = 0;                 // the same in the group, for words
  std::vector<std::byte> head;  // see pack_head()
  std::vector<std::span<const std::byte>> pieces;
  std::size_t payload_bytes = 0;
  double timeout_s = 0;

  std::size_t bytes() const { return head.size() + payload_bytes; }
};

class MailSender {
 public:
  MailSender(MailPlane& plane, MailBoxes& boxes);

  // Never blocks. Throws Aborted after stop().
  void submit(Outgoing message);
  // Messages that are not done.
  std::size_t under_way() const { return under_way_.load(std::memory_order_relaxed); }

  // Takes up what was submitted.
  void collect();
  // Does what can be done for one peer, this rank itself among them; true if anything moved.
  bool advance(int peer);
  bool active(int peer) const { return !links_[peer].waiting.empty() || !links_[peer].stream.empty(); }
  // The peer has received so much from a box. Throws TransportError when that is more than was sent.
  void credit(int peer, const BoxId& box, const MailHeld& received);

  // Ends what cannot or must not go on; true if there was any.
  bool sweep(Clock::time_point now);
  // The context is over: no credit of it is waited for.
  void forget(std::uint32_t context);
  void stop();

 private:
  struct Sending {
    Outgoing message;
    Cutter<std::span<const std::byte>> cutter;
    std::uint32_t sequence = 0;  // of the announcement
    std::size_t segment_bytes = 0;
    std::size_t bytes_left = 0;  // not yet gone
    bool broken = false;

    std::uint32_t context() const { return message.box.context; }
  };
  using Queue = std::deque<std::shared_ptr<Sending>>;
  using Waiting = std::map<BoxId, Queue>;  // no queue is empty
  struct Link {
    Waiting waiting;                 // for credit and room
    std::map<BoxId, MailHeld> held;  // where there is something
    BoxId last;                      // whose turn it was
    std::uint32_t announced = 0;
    MailStream<Sending> stream;

    MailHeld held_by(const BoxId& box) const;
    bool admits_first(const BoxId& box, const Queue& queue) const;
  };

  bool launch_in_turn(int peer);
  std::shared_ptr<Sending> take_first(Link& link, Waiting::iterator at);
  void keep(const std::shared_ptr<Sending>& sending);
  void deliver_here(const Outgoing& message);
  void launch(int peer, const std::shared_ptr<Sending>& sending);
  bool send_segments(int peer);

  bool sweep(int peer, Clock::time_point now);
  std::optional<Failure> reason_to_end(int peer, const Sending& sending, Clock::time_point now) const;
  std::string waits_for(int peer, const Sending& sending) const;
  void finish(Sending& sending, std::optional<Failure> failure);

  MailPlane& plane_;
  MailBoxes& boxes_;

  std::mutex mutex_;  // guards until "driver only"
  std::vector<std::shared_ptr<Sending>> inbox_;
  bool stopped_ = false;
  std::atomic<std::size_t> under_way_{0};

  // Driver only.
  std::vector<Link> links_;  // by world rank
};

}  // namespace pycomm
