// A subject beside the operations: it lives on control frames of its own kind and is advanced in every pass
// of the driver. The mailbox is one. A new one is a file with a `Register<ServiceEntry>`.
//
// Threads: all calls come from whoever drives, one thread at a time, but for busy() and listens().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/work.h"
#include "transport/router.h"

namespace pycomm {

class Driver;

class Service {
 public:
  virtual ~Service() = default;

  // A peer's Driver::post_frame(). Throws when it makes no sense: everything on this engine then breaks.
  virtual void frame(int peer, std::span<const std::byte> bytes) = 0;
  // Does what can be done now; true if anything moved. Does not throw.
  virtual bool advance() = 0;

  // A world rank has said goodbye: what it posted as frames before has been read.
  virtual void departed(int peer) = 0;
  // A transport failed outside any one message.
  virtual void failed(const Failure& failure) = 0;
  // The engine shuts down; nothing is called afterwards. True: no transport uses our memory.
  virtual bool stop() = 0;

  // Any thread: whether passes are needed until this says no.
  virtual bool busy() const = 0;
  // Any thread: whether the progress thread is to look for frames even when nothing is under way.
  virtual bool listens() const = 0;
};

struct ServiceContext {
  Driver& driver;
  Router& router;
  std::uint8_t kind;  // of its frames
};

struct ServiceEntry {
  std::string name;
  std::unique_ptr<Service> (*create)(const ServiceContext& context) = nullptr;
};

}  // namespace pycomm
