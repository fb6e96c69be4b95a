// A double of a device, for machines that have none: its memory is host memory, its streams are queues whose
// work is done a little at a time, whenever somebody asks whether an event has been reached. It is as unkind
// as a device may be:
//   - its memory cannot be touched at the addresses that it gives out: who tries ends with a fault;
//   - streams run in random order against each other, and the caller's last, so that a wait that is missing
//   shows;
//   - copies that take host memory which is not pinned are refused.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/error.h"
#include "fuzz.h"
#include "kernels/stream_kernels.h"

namespace pycomm {

// What a test may ask the double to do wrong, so as to see that somebody notices.
enum class Flaw { none, forgets_waits, answers_at_once, fails_copies, fails_marks };

class FakeDevice final : public Device {
 public:
  static constexpr int kCard = 1;

  explicit FakeDevice(unsigned seed, Flaw flaw = Flaw::none) : flaw_(flaw), random_(seed) {}

  // Memory of the device.
  class Memory {
   public:
    Memory(FakeDevice& device, std::size_t bytes) : device_(device), bytes_(std::max<std::size_t>(bytes, 1)) {
      const int file = memfd_create("fake device", 0);
      if (file < 0 || ftruncate(file, static_cast<off_t>(bytes_)) != 0) throw TransportError("no memfd");
      address_ = map(file, PROT_NONE);
      contents_ = map(file, PROT_READ | PROT_WRITE);
      close(file);
      const std::lock_guard lock(device_.mutex_);
      device_.memories_.push_back(this);
    }
    ~Memory() {
      {
        const std::lock_guard lock(device_.mutex_);
        std::erase(device_.memories_, this);
      }
      munmap(address_, bytes_);
      munmap(contents_, bytes_);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    std::byte* address() const { return address_; }
    std::byte* contents() const { return contents_; }  // where the test sees them

   private:
    friend class FakeDevice;
    std::byte* map(int file, int protection) const {
      void* const at = mmap(nullptr, bytes_, protection, MAP_SHARED, file, 0);
      if (at == MAP_FAILED) throw TransportError("no mapping");
      return static_cast<std::byte*>(at);
    }
    FakeDevice& device_;
    const std::size_t bytes_;
    std::byte* address_ = nullptr;
    std::byte* contents_ = nullptr;
  };

  // Work of the caller's, on a stream of that number (any but 0).
  void enqueue(std::uintptr_t number, std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    streams_[queue_of(number)].tasks.push_back({std::move(work), nullptr});
  }
  int locked_blocks() const { return static_cast<int>(pinned_.size()); }

  std::string name() const override { return "fake"; }
  int card_of(const void*) const override { return kCard; }
  std::unique_ptr<Stream> open_stream(int card) override {
    check_card(card);
    const std::lock_guard lock(mutex_);
    streams_.emplace_back();
    return std::make_unique<FakeStream>(*this, static_cast<int>(streams_.size()) - 1);
  }
  std::unique_ptr<Stream> borrow_stream(int card, std::uintptr_t number) override {
    check_card(card);
    const std::lock_guard lock(mutex_);
    return std::make_unique<FakeStream>(*this, queue_of(number));
  }
  std::unique_ptr<Event> make_event(int card) override {
    check_card(card);
    return std::make_unique<FakeEvent>(*this);
  }
  void pin(int card, void* memory, std::size_t bytes) override {
    check_card(card);
    const std::lock_guard lock(mutex_);
    for (const auto& [begin, size] : pinned_)
      if (begin < static_cast<std::byte*>(memory) + bytes && static_cast<std::byte*>(memory) < begin + size)
        throw TransportError("fake: memory is locked twice");
    pinned_[static_cast<std::byte*>(memory)] = bytes;
  }
  void unpin(int, void* memory) noexcept override {
    const std::lock_guard lock(mutex_);
    pinned_.erase(static_cast<std::byte*>(memory));
  }
  const StreamKernels& kernels() const override { throw TransportError("fake: this double has no kernels"); }

 private:
  struct EventState {
    int marked = 0;
    int reached = 0;
  };
  // Work, or a wait for an event to be reached so many times.
  struct Task {
    std::function<void()> work;
    std::shared_ptr<EventState> event;
    int times = 0;
    bool ready() const { return !event || event->reached >= times; }
  };
  struct Queue {
    std::deque<Task> tasks;
    bool callers = false;
  };

  class FakeEvent final : public Event {
   public:
    explicit FakeEvent(FakeDevice& device) : device_(device) {}
    bool reached() override {
      const std::lock_guard lock(device_.mutex_);
      if (device_.flaw_ == Flaw::answers_at_once) return true;
      for (auto tasks = fuzz::below(device_.random_, 5); tasks > 0; --tasks) device_.run_one();
      return state->reached == state->marked;
    }
    const std::shared_ptr<EventState> state = std::make_shared<EventState>();

   private:
    FakeDevice& device_;
  };

  class FakeStream final : public Stream {
   public:
    FakeStream(FakeDevice& device, int queue) : device_(device), queue_(queue) {}
    void copy(void* to, const void* from, std::size_t bytes) override {
      const std::lock_guard lock(device_.mutex_);
      if (device_.flaw_ == Flaw::fails_copies) throw TransportError("fake: the card has fallen off");
      std::byte* const target = device_.resolve(static_cast<std::byte*>(to), bytes);
      const std::byte* const source = device_.resolve(static_cast<const std::byte*>(from), bytes);
      tasks().push_back({[=] { std::memcpy(target, source, bytes); }, nullptr});
    }
    void mark(Event& event) override {
      const std::lock_guard lock(device_.mutex_);
      if (device_.flaw_ == Flaw::fails_marks) throw TransportError("fake: the card has fallen off");
      auto state = dynamic_cast<FakeEvent&>(event).state;
      const int times = ++state->marked;
      tasks().push_back({[=] { state->reached = times; }, nullptr});
    }
    void wait_for(Event& event) override {
      if (device_.flaw_ == Flaw::forgets_waits) return;
      const std::lock_guard lock(device_.mutex_);
      const auto& state = dynamic_cast<FakeEvent&>(event).state;
      tasks().push_back({[] {}, state, state->marked});
    }
    void* handle() const override { return nullptr; }
    int card() const override { return kCard; }

   private:
    std::deque<Task>& tasks() { return device_.streams_[queue_].tasks; }
    FakeDevice& device_;
    const int queue_;
  };

  static void check_card(int card) {
    if (card != kCard) throw TransportError(text("fake: card ", card, " was named, expected ", kCard));
  }

  // With the lock, as all that follows.
  int queue_of(std::uintptr_t number) {
    const auto [at, is_new] = callers_.try_emplace(number, static_cast<int>(streams_.size()));
    if (is_new) streams_.emplace_back().callers = true;
    return at->second;
  }

  void run_one() {
    for (const bool callers : {false, true}) {
      std::vector<Queue*> runnable;
      for (Queue& queue : streams_)
        if (queue.callers == callers && !queue.tasks.empty() && queue.tasks.front().ready())
          runnable.push_back(&queue);
      if (runnable.empty()) continue;
      Queue& queue = *runnable[fuzz::below(random_, runnable.size())];
      queue.tasks.front().work();
      queue.tasks.pop_front();
      return;
    }
  }

  // Where we can touch what has that address: device memory, or host memory that is pinned.
  template <class Byte>
  Byte* resolve(Byte* address, std::size_t bytes) const {
    for (const Memory* memory : memories_)
      if (address >= memory->address_ && address + bytes <= memory->address_ + memory->bytes_)
        return memory->contents_ + (address - memory->address_);
    const auto behind = pinned_.upper_bound(const_cast<std::byte*>(address));
    if (behind != pinned_.begin()) {
      const auto& [begin, size] = *std::prev(behind);
      if (address + bytes <= begin + size) return address;
    }
    throw TransportError("fake: a copy takes memory that is neither the device's nor pinned");
  }

  const Flaw flaw_;
  std::mutex mutex_;
  fuzz::Random random_;
  std::deque<Queue> streams_;
  std::map<std::uintptr_t, int> callers_;  // by number: a queue
  std::vector<const Memory*> memories_;
  std::map<std::byte*, std::size_t> pinned_;
};

}  // namespace pycomm
