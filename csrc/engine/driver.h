// Advances all operations in flight. At most one thread drives at a time: a caller that waits while nobody
// drives, else the progress thread. A blocking call on an idle engine so runs where it is, because handing it
// to another thread costs more than a small message; a caller that finds someone driving sleeps until its
// operation is done or the turn is free.
//
// Submitting takes `mutex_` for a moment and never waits for the driver. Everything below "driver only"
// belongs to whoever has the turn (`driving_`), which passes from thread to thread under `mutex_`.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/trace.h"
#include "engine/executor.h"
#include "engine/group.h"
#include "engine/wire.h"
#include "engine/work.h"
#include "transport/router.h"

namespace pycomm {

struct Task {
  std::shared_ptr<Work> work;
  std::shared_ptr<Group> group;
  std::function<std::unique_ptr<Executor>()> start;  // called by the driver
  Header header;                                     // the call, for errors
  double timeout_s = 0;
  bool collective = true;  // collectives of one group start in order, and only some run at once

  std::unique_ptr<Executor> executor;  // once started
};

class Driver {
 public:
  // With `progress_thread`, operations advance while nobody waits.
  Driver(Router& router, Trace& trace, int collectives_in_flight, bool progress_thread);
  ~Driver() { stop(); }

  // `soon`: wake the progress thread; false when the caller waits right away.
  void submit(Task task, bool soon);

  // Drives, or sleeps while another thread drives, until the work is done or the time has come. True: done.
  bool wait(const Work& work, Clock::time_point until);

  // Breaks a group here and on its other ranks. Does not block.
  void abort(const std::shared_ptr<Group>& group, const Failure& failure);

  // News of a communicator's failure can arrive before the communicator itself: groups must be announced.
  void announce(const std::shared_ptr<Group>& group);

  // Fails what is in flight and stops the thread. True: no transport uses any buffer of ours.
  bool stop();

 private:
  struct Notice;

  bool pass();
  bool pass_or_break();
  void clear_ended();
  static bool withdrawn(Executor& executor);
  void post_notice(int peer, const Notice& notice);
  void say_goodbye();
  bool run(Task& task);
  void end(Task& task, std::optional<Failure> failure);
  void fail(Task& task, ErrorKind kind, const std::string& what);
  void tell_peers(const Group& group, const Failure& failure);
  void send_news();
  bool read_control();
  bool past_deadline(Task& task);
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
  std::vector<Task> inbox_;
  std::vector<std::pair<std::shared_ptr<Group>, Failure>> outbox_;  // news for peers
  std::size_t pending_ = 0;                                         // submitted and not done
  int waiting_ = 0;                                                 // threads in turn_
  bool driving_ = false;
  bool sleeping_ = false;  // the driver backs off, in more_
  std::map<std::uint32_t, std::weak_ptr<Group>> groups_;
  std::map<std::uint32_t, Failure> early_;  // of communicators not yet announced here
  std::atomic<bool> inbox_full_{false};     // hint: look into inbox_
  std::atomic<bool> stop_{false};           // written under the lock

  // Driver only.
  std::list<Task> active_;
  std::list<Task> pinned_;                 // failed, but a transport still uses their buffers
  std::map<int, Clock::time_point> left_;  // world ranks that have gone, and since when we know

  std::thread thread_;
};

}  // namespace pycomm
