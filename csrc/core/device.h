// An accelerator, as the engine sees it: memory that the processor cannot address, and *streams*, queues
// whose work runs beside the processor, each in order. An *event* is a mark in a stream. What knows CUDA
// implements this (device/cuda_device.cu); the tests implement it over host memory.
//
// Nothing here waits but what says so. Failures throw TransportError. Threads: a device by anyone; a stream
// or an event by one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace pycomm {

struct StreamKernels;

class Event {
 public:
  virtual ~Event() = default;
  // Whether what the stream held when it was last marked with this is done; true before the first mark.
  virtual bool reached() = 0;
};

class Stream {
 public:
  // Waits for nothing: what it holds still runs.
  virtual ~Stream() = default;
  // Between any two places, in host memory or the device's. Host memory must be pinned, or the processor
  // waits.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void mark(Event& event) = 0;
  // What is enqueued later runs after the latest mark of that event, which may be another stream's.
  virtual void wait_for(Event& event) = 0;
  // Of the device's libraries, for StreamKernels: what they call the stream, and its card.
  virtual void* handle() const = 0;
  virtual int card() const = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;               // "cuda"
  virtual int card_of(const void* memory) const = 0;  // where memory of the device lies

  virtual std::unique_ptr<Stream> open_stream(int card) = 0;
  // A stream of the caller's, by the number that the device's libraries give it; it stays the caller's.
  virtual std::unique_ptr<Stream> borrow_stream(int card, std::uintptr_t number) = 0;
  virtual std::unique_ptr<Event> make_event(int card) = 0;

  // Locks pages of host memory in place, for copies of any card that run beside the processor. As slow as
  // allocating. The card is one that is in use.
  virtual void pin(int card, void* memory, std::size_t bytes) = 0;
  virtual void unpin(int card, void* memory) noexcept = 0;

  virtual const StreamKernels& kernels() const = 0;
};

// Where the arrays of a call lie that are not in host memory, and the stream whose work so far they wait for.
struct Placement {
  Device* device = nullptr;  // null: in host memory
  int card = 0;
  std::uintptr_t stream = 0;
  bool operator==(const Placement&) const = default;
};

}  // namespace pycomm
