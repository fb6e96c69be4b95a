// The mailbox as the driver knows it: carries messages of unknown sender and size between ranks. A message is
// a head and pieces. MailSender has those that go, MailReceiver those that come, MailBoxes those that are
// here; all stand on a MailPlane.
//
// Threads: submit(), boxes(), listen() and remind() by anyone; the rest by the driver.
#pragma once

#include <atomic>
#include <cstddef>
#include <span>
#include <utility>

#include "engine/mail_boxes.h"
#include "engine/mail_plane.h"
#include "engine/mail_receiver.h"
#include "engine/mail_sender.h"
#include "engine/service.h"

namespace pycomm {

class MailService final : public Service {
 public:
  explicit MailService(const ServiceContext& context) : plane_(context) {}

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
  bool busy() const override { return sender_.under_way() + receiver_.under_way() > 0; }
  bool listens() const override { return listens_.load(std::memory_order_relaxed); }

 private:
  void collect();
  bool sweep(Clock::time_point now);
  bool active() const;

  std::atomic<bool> given_{false};  // hint: something came through a mutex, of the sender or of the boxes
  std::atomic<bool> listens_{false};

  MailBoxes boxes_;
  MailPlane plane_;
  MailSender sender_{plane_, boxes_};
  MailReceiver receiver_{plane_, boxes_};

  // Driver only.
  bool quiet_ = true;  // nothing to do before something comes
  Clock::time_point swept_{};
};

}  // namespace pycomm
