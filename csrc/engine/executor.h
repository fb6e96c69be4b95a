// Runs one rank's part of one operation, a little further with every advance(), any number of times one after
// the other. It never waits itself. Used by the driver only, but for making and destroying it between runs.
#pragma once

#include <cstdint>
#include <string>

#include "transport/transport.h"

namespace pycomm {

class Executor {
 public:
  virtual ~Executor() = default;

  // Between runs, by whoever asks for the next one: what numbers it.
  virtual void number(std::uint32_t sequence, std::uint32_t history, Tag tag) = 0;

  // Before each run: takes what it needs. Throws when that is not there.
  virtual void begin() = 0;
  // After each run that a transport has no part in any more, and after a begin() that threw: gives it back.
  virtual void end() = 0;

  // Does what can be done now; true if anything moved. Throws on a mismatch or a transport's failure.
  virtual bool advance() = 0;
  virtual bool finished() const = 0;
  virtual std::int64_t bytes_sent() const = 0;  // payload, headers left out

  // What it waits for: "recv from rank 1 in stage 2 of 6 (chunk 3, segment 4 of 8)".
  virtual std::string waiting_for() const = 0;

  // Whether something has still to come from or go to that rank.
  virtual bool waits_for(int world_peer) const = 0;

  // Gives up all messages in flight. True: no transport uses our memory any more. False: call again later;
  // until then the executor and the caller's buffers must live.
  virtual bool withdraw() = 0;
};

}  // namespace pycomm
