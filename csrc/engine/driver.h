// Advances all operations in flight. At most one thread drives at a time: a caller that waits while nobody
// drives, else the progress thread. A blocking call on an idle engine so runs where it is, because handing it
// to another thread costs more than a small message; a caller that finds someone driving sleeps until its
// operation is done or the turn is free.
//
// Submitting takes `mutex_` for a moment and never waits for the driver. Everything below "driver only"
// belongs to whoever has the turn (`driving_`), which passes from thread to thread under `mutex_`.
//
// A control frame begins with its kind, one byte: 0 for news of failures and goodbyes, else a service's. A
// progress thread sleeps while nothing is under way, unless a service listens: then it looks for frames every
// millisecond, and leaves the turn free in between.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "core/trace.h"
#include "engine/executor.h"
#include "engine/group.h"
#include "engine/service.h"
#include "engine/wire.h"
#include "engine/work.h"
#include "transport/router.h"

namespace pycomm {

// An operation and what runs it. It may be submitted again once its work is done.
struct Task {
  Task(std::shared_ptr<void> keepalive, const TracedCall& call) : work(std::move(keepalive), call) {}

  Work work;
  std::shared_ptr<Group> group;
  std::unique_ptr<Executor> executor;
  Header header;  // the call, for errors
  double timeout_s = 0;
  bool collective = true;  // collectives of one group start in order, and only some run at once
};

class Driver {
 public:
  // With `progress_thread`, operations advance while nobody waits.
  Driver(Router& router, Trace& trace, int collectives_in_flight, bool progress_thread);
  ~Driver() { stop(); }

  // `soon`: wake the progress thread; false when the caller waits right away.
  void submit(std::shared_ptr<Task> task, bool soon);

  // Drives, or sleeps while another thread drives, until the work is done or the time is over. True: done.
  bool wait(const Work& work, Clock::duration time);
  // The same for anything that a pass can bring about. `done` is called by the waiting thread alone, often,
  // with or without our lock: it must be quick and not call us.
  bool wait(const std::function<bool()>& done, Clock::duration time);

  // For services that were given something: wakes whoever drives and sleeps.
  void nudge();
  // The same, and makes one pass if nobody drives. Does not block.
  void poke();

  // Breaks a group here and on its other ranks. Does not block.
  void abort(const std::shared_ptr<Group>& group, const Failure& failure);

  // News of a communicator's failure can arrive before the communicator itself: groups must be announced, in
  // the order of their contexts. Throws InvalidArgument for a context below an earlier one.
  void announce(const std::shared_ptr<Group>& group);

  // Fails what is in flight and stops the thread. True: no transport uses any buffer of ours.
  bool stop();

  // The registered service of this type.
  template <class T>
  T& service() const {
    for (const auto& service : services_)
      if (auto* const found = dynamic_cast<T*>(service.get())) return *found;
    throw Error(ErrorKind::internal, "no such service is registered");
  }

  // ---- for services, while they are called

  static constexpr std::size_t kFrameBytes = kControlBytes - 1;  // beside the kind
  void post_frame(std::uint8_t kind, int peer, std::span<const std::byte> bytes);
  // What broke a communicator: of those, too, that are not here yet, or no more.
  std::optional<Failure> failure(std::uint32_t context);
  // Whether a communicator was here, and nobody holds it any more.
  bool gone(std::uint32_t context);
  // Breaks a group here and on its other ranks.
  void break_group(Group& group, const Failure& failure);
  // The same by context. A communicator that is not here yet will be broken when it comes.
  void break_context(std::uint32_t context, const Failure& failure);

 private:
  struct Notice;

  // A task that has been taken from the inbox.
  struct Active {
    std::shared_ptr<Task> task;
    bool running = false;  // has begun
    bool ended = false;    // then somebody may submit the task again
    bool pinned = false;   // ended, but a transport still uses its buffers
  };

  // A pass with a look also reads the clock, deadlines and frames. Some others do, too.
  enum class Look { yes, sometimes };
  bool pass(Look look);
  bool pass_or_break(Look look);
  void forget_unheld();
  void single_pass(std::unique_lock<std::mutex>& lock);
  bool under_way() const;
  bool works() const;
  bool listens() const;
  void wake_thread();
  void take_inbox();
  void wake_waiters();
  void clear_ended();
  static bool withdrawn(Executor& executor);
  void post_notice(int peer, const Notice& notice);
  void say_goodbye();
  bool run(Active& active, bool looks);
  void end(Active& active, std::optional<Failure> failure);
  void fail(Active& active, ErrorKind kind, const std::string& what);
  void tell_peers(const Group& group, const Failure& failure);
  bool send_news();
  bool read_control();
  // The group, if this was its first failure.
  std::shared_ptr<Group> fail_locally(std::uint32_t context, const Failure& failure);
  void read_notice(int peer, std::span<const std::byte> bytes);
  void departed(int peer);
  void check_deadline(const Active& active) const;
  template <class Done>
  bool wait_for(Done done, Clock::duration time);
  template <class Done>
  void drive(Done done);
  void thread_main();

  Router& router_;
  Trace& trace_;
  const int collectives_in_flight_;
  const bool has_thread_;

  std::mutex mutex_;              // guards until "driver only"
  std::condition_variable turn_;  // the turn is free, or a work is done
  std::condition_variable more_;  // there is something to drive
  std::vector<std::shared_ptr<Task>> inbox_;
  std::vector<std::pair<std::shared_ptr<Group>, Failure>> outbox_;  // news for peers
  int waiting_ = 0;                                                 // threads in turn_
  bool driving_ = false;
  bool nudged_ = false;    // since the driver last looked
  bool sleeping_ = false;  // the driver backs off, in more_
  bool dozing_ = false;    // the progress thread listens: it wakes by itself
  std::map<std::uint32_t, std::shared_ptr<Group>> groups_;
  std::int64_t newest_ = -1;  // context that was announced
  // Of communicators not in groups_. Kept, since mail of theirs may still be on its way.
  std::map<std::uint32_t, Failure> absent_failures_;
  std::atomic<bool> inbox_full_{false};  // hint: look into inbox_ and outbox_
  std::atomic<bool> stop_{false};        // written under the lock

  // Driver only.
  std::vector<Active> active_;
  std::vector<Active> pinned_;
  std::map<int, Clock::time_point> left_;  // world ranks that have gone, and since when we know
  unsigned passes_ = 0;
  Clock::time_point now_{};  // of the latest look
  bool any_ended_ = false;   // in active_
  bool news_ = false;        // for waiters that sleep; told in the next pass, or with the turn
  bool clean_ = true;        // once stopped: no transport uses any buffer of ours

  std::vector<std::unique_ptr<Service>> services_;  // by kind, from 1
  std::thread thread_;
};

}  // namespace pycomm
