// Carries messages of unknown sender and size between ranks. A message is a head and pieces.
//
// Small ones travel in a control frame. Of a larger one a frame announces the sizes; then the head and each
// piece follow from the sender's memory, cut into segments, on tags of the mail plane. Per pair of ranks the
// announced messages form one stream, in order, with the window of the pair; what is announced has its credit
// (mail_boxes.h), so the stream never waits for anybody to receive, and a slow box holds up no other. The
// receiver learns the sizes of the pieces from the head before it posts a receive for any.
//
// Transports bound the frames that a rank leaves unread. So each pair has a window of frames too; a frame
// says how many of the other's frames have been read, and a receipt says it when there is nothing else to
// say.
//
// Threads: submit(), boxes(), listen() and remind() by anyone; the rest by the driver.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/driver.h"
#include "engine/mail_boxes.h"
#include "engine/mail_stream.h"
#include "engine/service.h"

namespace pycomm {

struct MailFrame;

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

class MailService final : public Service {
 public:
  explicit MailService(const ServiceContext& context);

  // Never blocks. Throws Aborted after stop().
  void submit(Outgoing message);
  MailBoxes& boxes() { return boxes_; }
  // Somebody will receive: the progress thread is to look for frames from now on.
  void listen() { listens_.store(true, std::memory_order_relaxed); }
  // A credit has become due.
  void remind() { given_.store(true, std::memory_order_relaxed); }

  void frame(int peer, std::span<const std::byte> bytes) override;
  bool advance() override;
  void departed(int peer) override;
  void failed(const Failure& failure) override;
  bool stop() override;
  bool busy() const override { return under_way_.load(std::memory_order_relaxed) > 0; }
  bool listens() const override { return listens_.load(std::memory_order_relaxed); }

 private:
  struct Sending {
    Outgoing message;
    Cutter<std::span<const std::byte>> cutter;
    std::uint32_t sequence = 0;  // of the announcement
    std::size_t segment_bytes = 0;
    std::size_t bytes_left = 0;  // not yet gone

    std::uint32_t context() const { return message.box.context; }
  };
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
  struct Lane {  // messages to one box of one peer
    std::deque<std::shared_ptr<Sending>> waiting;
    MailHeld held;

    bool admits_first() const { return !waiting.empty() && held.admits(waiting.front()->message.bytes()); }
  };
  struct Link {  // the traffic with one peer
    int peer = 0;
    bool departed = false;
    Clock::time_point departed_at{};
    // Frames, counted modulo 2^32.
    std::uint32_t sent = 0;
    std::uint32_t sent_read = 0;  // by the peer
    std::uint32_t read = 0;
    std::uint32_t read_told = 0;
    std::map<BoxId, Lane> lanes;
    std::size_t waiting = 0;            // in all lanes
    BoxId last;                         // whose turn it was
    std::map<BoxId, MailHeld> credits;  // to be given back
    std::uint32_t announced = 0;
    MailStream<Sending> sending;
    MailStream<Receiving> receiving;

    bool active() const { return waiting > 0 || !credits.empty() || !sending.empty() || !receiving.empty(); }
  };

  void collect();
  bool keep_to_ourselves(Link& link);
  void deliver_here(const Outgoing& message);
  std::shared_ptr<Sending> take_first(Link& link, const BoxId& box, Lane& lane);

  bool post_frames(Link& link);
  bool room(const Link& link) const { return !link.departed && link.sent - link.sent_read < frame_window_; }
  bool post_counted(Link& link, const MailFrame& frame, std::span<const std::byte> body);
  // False when it is lost.
  bool post(Link& link, MailFrame frame, std::span<const std::byte> body);
  void launch(Link& link, const std::shared_ptr<Sending>& sending);

  void accept(Link& link, const MailFrame& frame, std::span<const std::byte> body);
  void expect(Link& link, const MailFrame& frame);
  void credit(Link& link, const BoxId& box, const MailHeld& received);

  bool send_segments(Link& link);
  bool receive_segments(Link& link);
  void land(Receiving& receiving);

  void sweep(Clock::time_point now);
  void give_up_on(Link& link, const std::shared_ptr<Sending>& sending, Clock::time_point now);
  std::string waits_for(const Link& link, const Sending& sending) const;
  void finish(Sending& sending, std::optional<Failure> failure);
  void lose(Link& link, const std::shared_ptr<Receiving>& receiving);
  void break_context(std::uint32_t context, const Failure& failure);
  void retire_pinned();

  Driver& driver_;
  Router& router_;
  const std::uint8_t kind_;
  const std::uint32_t frame_window_;
  MailBoxes boxes_;

  std::mutex mutex_;  // guards until "driver only"
  std::vector<std::shared_ptr<Sending>> inbox_;
  bool stopped_ = false;
  std::atomic<bool> given_{false};         // hint: something came through the mutex, here or in boxes_
  std::atomic<std::size_t> under_way_{0};  // messages that need passes
  std::atomic<bool> listens_{false};

  // Driver only.
  std::vector<Link> links_;  // by world rank
  bool quiet_ = true;        // nothing to do before something comes
  Clock::time_point swept_{};
  std::vector<PinnedMail> pinned_;  // given up, but a transport still uses their memory
};

}  // namespace pycomm
