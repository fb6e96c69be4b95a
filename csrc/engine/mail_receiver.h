// The messages that come, into their boxes.
//
// What a rank has announced arrives as one stream (mail_sender.h). The sizes of the pieces are learnt from
// the head before a receive is posted for any.
//
// Threads: under_way() by anyone; the rest by the driver.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/mail_boxes.h"
#include "engine/mail_plane.h"
#include "engine/mail_stream.h"

namespace pycomm {

class MailReceiver {
 public:
  MailReceiver(MailPlane& plane, MailBoxes& boxes);

  // Messages that are coming.
  std::size_t under_way() const { return under_way_.load(std::memory_order_relaxed); }

  // Frames of a peer. Throw TransportError when they make no sense.
  void letter(int peer, const MailFrame& frame, std::span<const std::byte> body);
  void announcement(int peer, const MailFrame& frame);

  // A peer is to be given credit.
  void owe(const MailCredit& due);
  // Does what can be done for one peer; true if anything moved.
  bool advance(int peer);
  bool active(int peer) const { return !links_[peer].credits.empty() || !links_[peer].stream.empty(); }
  void depart(int peer) { links_[peer].credits.clear(); }

  // Loses what cannot come any more; true if there was any. `looked`: for so long has this rank been looking
  // for segments since it was last asked. What a rank sent before it left is late only when it was looked for
  // in vain for kFarewell: without a progress thread a rank may be in no pass for much longer.
  bool sweep(Clock::duration looked);
  void stop();

 private:
  struct Receiving {
    std::shared_ptr<Arrival> arrival;
    std::uint32_t sequence = 0;
    std::size_t segment_bytes = 0;
    std::size_t piece_count = 0;
    std::vector<std::byte> head;
    std::size_t payload_bytes = 0;
    Cutter<std::span<std::byte>> cutter;
    std::size_t bytes_left = 0;  // not yet here
    bool broken = false;

    std::uint32_t context() const { return arrival->box.context; }
  };
  struct Link {
    std::map<BoxId, MailHeld> credits;  // to be given
    MailStream<Receiving> stream;
    Clock::duration in_vain{};  // looked for segments of a rank that has left
  };

  bool post_credits(int peer);
  bool receive_segments(int peer);
  void land(Receiving& receiving);
  void lose(int peer, const std::shared_ptr<Receiving>& receiving);

  MailPlane& plane_;
  MailBoxes& boxes_;
  std::atomic<std::size_t> under_way_{0};
  std::vector<Link> links_;  // by world rank
};

}  // namespace pycomm
