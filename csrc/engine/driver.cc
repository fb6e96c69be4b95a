#include "engine/driver.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "engine/backoff.h"
#include "engine/farewell.h"
#include "kernels/kernels.h"

namespace pycomm {
namespace {

// How often an idle progress thread looks for frames, where a service listens.
constexpr std::chrono::milliseconds kListen{1};

// Passes between two looks at the clock, of a driver that is busy: a look costs more than a pass.
constexpr unsigned kLookEvery = 32;

// How long stop() waits for memory that is still in other hands.
constexpr std::chrono::milliseconds kLastCopies{100};

}  // namespace

Driver::Driver(Router& router, Trace& trace, int collectives_in_flight, bool progress_thread)
    : router_(router),
      trace_(trace),
      collectives_in_flight_(collectives_in_flight),
      has_thread_(progress_thread) {
  for (const ServiceEntry* entry : Registry<ServiceEntry>::instance().all()) {
    const auto kind = static_cast<std::uint8_t>(services_.size() + 1);
    services_.push_back(entry->create({*this, router, kind}));
  }
  if (has_thread_) thread_ = std::thread([this] { thread_main(); });
}

void Driver::submit(std::shared_ptr<Task> task, bool soon) {
  const std::lock_guard lock(mutex_);
  if (stop_) throw Aborted("the engine has been shut down");
  inbox_.push_back(std::move(task));
  inbox_full_.store(true, std::memory_order_relaxed);  // the mutex orders what is behind the hint
  if (sleeping_)
    more_.notify_all();  // the driver, not only the idle thread beside it
  else if (soon && !driving_ && has_thread_)
    more_.notify_one();
}

void Driver::announce(const std::shared_ptr<Group>& group) {
  const std::lock_guard lock(mutex_);
  PYCOMM_CHECK(group->context > newest_, "context ", group->context, " after ", newest_,
               ": expected a larger one for each communicator");
  forget_unheld();
  newest_ = group->context;
  groups_.emplace(group->context, group);
  const auto news = absent_failures_.find(group->context);
  if (news == absent_failures_.end()) return;
  group->fail(news->second);
  absent_failures_.erase(news);
}

// With the lock.
void Driver::forget_unheld() {
  std::erase_if(groups_, [this](const auto& entry) {
    const auto& [context, group] = entry;
    if (group.use_count() > 1) return false;
    if (const auto failure = group->failure()) absent_failures_.emplace(context, *failure);
    return true;
  });
}

void Driver::abort(const std::shared_ptr<Group>& group, const Failure& failure) {
  std::unique_lock lock(mutex_);
  if (stop_) return;
  outbox_.emplace_back(group, failure);
  inbox_full_.store(true, std::memory_order_relaxed);
  if (driving_)
    more_.notify_all();
  else
    single_pass(lock);
}

void Driver::nudge() {
  const std::lock_guard lock(mutex_);
  nudged_ = true;
  if (sleeping_) more_.notify_all();
}

void Driver::poke() {
  std::unique_lock lock(mutex_);
  if (stop_) return;
  nudged_ = true;
  if (!driving_)
    single_pass(lock);
  else if (sleeping_)
    more_.notify_all();
}

// The lock is held before and after, and nobody drives.
void Driver::single_pass(std::unique_lock<std::mutex>& lock) {
  driving_ = true;
  lock.unlock();
  {
    const FloatMode float_mode;
    pass_or_break(Look::yes);
  }
  lock.lock();
  driving_ = false;
  turn_.notify_all();  // waiters, and stop()
  news_ = false;
  if (waiting_ == 0) wake_thread();
}

// The turn is free.
void Driver::wake_thread() {
  if (has_thread_ && (under_way() || (listens() && !dozing_))) more_.notify_one();
}

bool Driver::wait(const Work& work, Clock::duration time) {
  return wait_for([&work] { return work.done(); }, time);
}

bool Driver::wait(const std::function<bool()>& done, Clock::duration time) {
  return wait_for([&done] { return done(); }, time);
}

template <class Done>
bool Driver::wait_for(Done done, Clock::duration time) {
  // Begins with the first look at the clock: most waits end before.
  std::optional<Clock::time_point> until;
  const auto late = [&](Clock::time_point now) {
    if (!until) until = now + time;
    return now >= *until;
  };
  bool over = false;
  std::unique_lock lock(mutex_);
  while (!over && !done() && !stop_) {
    if (!driving_) {
      driving_ = true;
      take_inbox();
      lock.unlock();
      const auto began = now_;
      drive([&] { return done() || stop_ || (over = now_ != began && late(now_)); });
      lock.lock();
      driving_ = false;
    } else if (!(over = late(Clock::now()))) {
      ++waiting_;
      turn_.wait_until(lock, *until);
      --waiting_;
    }
  }
  // Pass the turn on: to another waiter, else to the thread.
  if (stop_ || (!driving_ && waiting_ > 0)) turn_.notify_all();
  if (!driving_ && waiting_ == 0) wake_thread();
  return done();
}

void Driver::thread_main() {
  trace_.name_thread("progress");
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (driving_ || !(under_way() || listens())) {
      more_.wait(lock);
      continue;
    }
    if (!under_way()) {
      dozing_ = true;
      const auto woken = more_.wait_for(lock, kListen);
      dozing_ = false;
      if (woken == std::cv_status::timeout && !driving_ && !stop_) single_pass(lock);
      continue;
    }
    driving_ = true;
    lock.unlock();
    drive([&] { return stop_ || (!inbox_full_.load(std::memory_order_relaxed) && !works()); });
    lock.lock();
    driving_ = false;
    if (waiting_ > 0) turn_.notify_all();
  }
}

// With the lock, and nobody drives.
bool Driver::under_way() const {
  return !inbox_.empty() || works();
}

// With the turn, or with the lock while nobody has it.
bool Driver::works() const {
  return !active_.empty() ||
         std::any_of(services_.begin(), services_.end(), [](auto& s) { return s->busy(); });
}

bool Driver::listens() const {
  return std::any_of(services_.begin(), services_.end(), [](auto& s) { return s->listens(); });
}

template <class Done>
void Driver::drive(Done done) {
  const FloatMode float_mode;
  const TraceSpan turn(trace_, "drive");
  TraceStalls stalls(trace_);
  Backoff backoff;
  while (!done()) {
    if (pass_or_break(backoff.rests() ? Look::yes : Look::sometimes)) {
      stalls.moved();
      backoff.reset();
      continue;
    }
    stalls.stuck();
    const auto sleep = backoff.pause();
    if (sleep.count() == 0) continue;
    std::unique_lock lock(mutex_);
    if (!inbox_.empty() || std::exchange(nudged_, false) || stop_) continue;
    sleeping_ = true;
    more_.wait_for(lock, sleep);
    sleeping_ = false;
  }
}

// A transport that fails outside any one operation breaks all of them.
bool Driver::pass_or_break(Look look) {
  try {
    return pass(look);
  } catch (const std::exception& error) {
    for (Active& active : active_)
      if (!active.ended) fail(active, ErrorKind::transport, error.what());
    for (const auto& service : services_) service->failed({ErrorKind::transport, error.what()});
    clear_ended();
    return news_ = true;
  }
}

bool Driver::pass(Look look) {
  bool news = false;
  if (inbox_full_.load(std::memory_order_relaxed)) {
    {
      const std::lock_guard lock(mutex_);
      take_inbox();
    }
    news |= send_news();  // what comes later sets the hint again
  }
  if (news_) wake_waiters();
  const bool looks = ++passes_ % kLookEvery == 0 || look == Look::yes;
  if (looks) now_ = Clock::now();
  bool moved = false;
  for (Active& active : active_) moved |= run(active, looks);
  for (const auto& service : services_) news |= service->advance();
  moved |= news;
  if (looks && !moved)
    std::erase_if(pinned_, [](Active& active) { return withdrawn(*active.task->executor); });
  if (looks || (!moved && listens())) news |= read_control();
  clear_ended();
  news_ |= news;
  return moved || news;
}

// With the lock and the turn. News for peers stay: send_news() takes them.
void Driver::take_inbox() {
  for (auto& task : inbox_) active_.push_back({std::move(task)});
  inbox_.clear();
  inbox_full_.store(!outbox_.empty(), std::memory_order_relaxed);
}

void Driver::wake_waiters() {
  const std::lock_guard lock(mutex_);
  news_ = false;
  if (waiting_ > 0) turn_.notify_all();
}

void Driver::clear_ended() {
  if (!std::exchange(any_ended_, false)) return;
  news_ = true;
  std::erase_if(active_, [this](Active& active) {
    if (active.pinned) pinned_.push_back(active);
    return active.ended;
  });
}

// A transport that cannot even tell keeps the buffers.
bool Driver::withdrawn(Executor& executor) {
  try {
    if (!executor.withdraw()) return false;
  } catch (const Error&) {
    return false;
  }
  executor.end();
  return true;
}

// True if anything moved.
bool Driver::run(Active& active, bool looks) {
  Task& task = *active.task;
  try {
    if (const auto failure = task.group->failure()) raise(failure->kind, failure->what);
    if (const std::string* why = task.work.abandoned()) throw Aborted(*why);
    bool moved = false;
    if (!active.running && !(task.collective && task.group->running >= collectives_in_flight_)) {
      task.executor->begin();
      active.running = true;
      if (task.collective) ++task.group->running;
      task.work.start(std::max(now_, task.work.submitted()));
    }
    if (active.running) moved = task.executor->advance();
    if (active.running && task.executor->finished()) {
      task.executor->end();
      end(active, std::nullopt);
      return true;
    }
    if (looks && !moved) check_deadline(active);
    return moved;
  } catch (const Error& error) {
    fail(active, error.kind(), error.what());
  } catch (const std::exception& error) {  // std::bad_alloc and the like
    fail(active, ErrorKind::internal, error.what());
  }
  return true;
}

// Throws when the deadline is over, or when a rank that it waits for has left.
void Driver::check_deadline(const Active& active) const {
  const Task& task = *active.task;
  if (active.running)
    for (const auto& [peer, since] : left_)
      // What it sent before it left counts as late only once it has been looked for as long.
      if (now_ - std::max(since, task.work.started()) > kFarewell && task.executor->waits_for(peer))
        throw Aborted(text("world rank ", peer, " has left: it ended or called shutdown(); waiting for ",
                           task.executor->waiting_for()));
  if (seconds(now_ - task.work.submitted()) < task.timeout_s) return;
  throw Timeout(text("no end within the timeout of ", task.timeout_s, " s: ",
                     active.running ? "waiting for " + task.executor->waiting_for()
                                    : std::string("waiting for earlier operations of the communicator")));
}

// The executor has ended, or is pinned.
void Driver::end(Active& active, std::optional<Failure> failure) {
  const Task& task = *active.task;
  if (active.running && task.collective) --task.group->running;
  active.ended = any_ended_ = true;
  const std::int64_t sent = active.running ? task.executor->bytes_sent() : 0;
  const auto now = Clock::now();
  Work& work = active.task->work;
  if (trace_.on())  // before anybody can see that it is done, and end the trace
    trace_.operation(work.call(), {work.submitted(), work.started(), now}, sent,
                     failure ? failure->what : "");
  work.finish(std::move(failure), sent, now);
}

void Driver::fail(Active& active, ErrorKind kind, const std::string& what) {
  const Task& task = *active.task;
  const auto first = task.group->failure();
  const std::string call = describe(task.header);
  Failure failure{kind, what};
  if (first) {  // perhaps because other ranks made another call: then both are to be seen
    if (what.find(call) == std::string::npos)
      failure.what += text("; rank ", task.group->rank, " called ", call);
  } else {
    failure.what = text(call, " failed on rank ", task.group->rank, " after ",
                        seconds(Clock::now() - task.work.submitted()), " s: ", what);
    task.group->fail(failure);
    tell_peers(*task.group, failure);
  }
  if (active.running)
    active.pinned = !withdrawn(*task.executor);
  else
    task.executor->end();
  end(active, failure);
}

bool Driver::stop() {
  {
    const std::lock_guard lock(mutex_);
    if (stop_.exchange(true)) return clean_;
    more_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  std::unique_lock lock(mutex_);
  turn_.wait(lock, [this] { return !driving_; });
  take_inbox();
  for (Active& active : active_)
    if (!active.ended) fail(active, ErrorKind::aborted, "the engine was shut down while it ran");
  for (const auto& service : services_) clean_ &= service->stop();
  clear_ended();
  turn_.notify_all();
  turn_.wait(lock, [this] { return waiting_ == 0; });
  // What a device still copies ends by itself, in a moment.
  for (const auto until = Clock::now() + kLastCopies;;) {
    std::erase_if(pinned_, [](Active& active) { return withdrawn(*active.task->executor); });
    if (pinned_.empty() || Clock::now() > until) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  clean_ &= pinned_.empty();
  say_goodbye();
  return clean_;
}

}  // namespace pycomm
