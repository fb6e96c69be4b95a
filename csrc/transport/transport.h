// A transport moves bytes between two ranks and says whom it can reach. It never reduces, waits or times out.
//
// Threads: all calls of one Transport come from one thread at a time (the driver of its engine), except the
// constructor, address() and reaches(), which run during init. No call blocks, but for the time of a copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/environment.h"
#include "core/registry.h"

namespace pycomm {

// Names the stream of messages of one operation between two ranks. Messages with equal tags from one rank to
// another are received in the order they were sent; nothing is promised between different tags.
struct Tag {
  std::uint32_t context = 0;   // which communicator
  std::uint32_t sequence = 0;  // which operation of it
  bool operator==(const Tag&) const = default;
};

using Ticket = std::uint32_t;  // names one posted send or receive until poll() says it is done

// A small message outside all operations, from anyone: news that a communicator broke, and the base of the
// mailbox.
inline constexpr std::size_t kControlBytes = 512;
struct ControlFrame {
  int peer = -1;
  std::vector<std::byte> bytes;  // at most kControlBytes
};

// Where a rank's buffer lies, in words that a peer can follow; travels in messages.
struct Region {
  std::uint64_t base = 0;
  std::uint64_t bytes = 0;
};

// Offered by transports whose peers' memory can be addressed.
class PeerMemory {
 public:
  virtual ~PeerMemory() = default;
  // Describes our own memory to peers; nothing where they cannot address it.
  virtual std::optional<Region> describe(std::span<std::byte> memory) = 0;
  // Where we see a peer's region; valid while the peer's operation runs. Loads and stores to it are ordered
  // by the messages of this transport: what a peer wrote before it sent is seen after the message is
  // received.
  virtual std::byte* map(int peer, const Region& region) = 0;

  // Memory that peers can address, aligned to 64 bytes, uninitialised. It may outlive the transport. Throws
  // TransportError when there is no room. Threads: any.
  virtual std::shared_ptr<std::byte> allocate(std::size_t bytes) = 0;
  // The same for the length of an operation, from a cache. Driver only.
  virtual std::shared_ptr<std::byte> borrow(std::size_t bytes) { return allocate(bytes); }
};

// How messages to a peer are best cut, in measured bytes.
struct Pacing {
  std::int64_t segment_bytes = 1 << 18;
  int window = 4;  // segments in flight per direction
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual std::string address() const = 0;  // published to every rank once, opaque
  // Whether this rank reaches `peer` (never asked of itself). False: the router tries the next transport.
  // Both ends must say yes. Asked of every peer during init, so it opens nothing.
  virtual bool reaches(int peer, const std::string& address) = 0;
  // Before the first message to or from that peer; what it costs is paid by those who talk to each other.
  virtual void connect(int /*peer*/) {}
  virtual Pacing pacing(int peer) const = 0;
  // Whether a network lies between. Asked of peers that are reached.
  virtual bool crosses_network(int /*peer*/) const { return false; }

  // The memory stays the caller's and must stay valid until the ticket is done or cancelled. A receive may be
  // larger than what arrives, never smaller (TransportError).
  virtual Ticket post_send(int peer, Tag tag, std::span<const std::byte> bytes) = 0;
  virtual Ticket post_recv(int peer, Tag tag, std::span<std::byte> bytes) = 0;
  // The bytes moved, once done: the ticket is then spent. For a send, done means that the memory may be
  // rewritten. A failure is thrown once; the ticket is then never done, and only to be cancelled.
  virtual std::optional<std::size_t> poll(Ticket ticket) = 0;
  // Gives a ticket up. True: the memory is the caller's again, and holds the message if that had arrived.
  // False: the transport still uses it, and the caller must keep it for ever.
  virtual bool cancel(Ticket ticket) = 0;

  virtual void post_control(int peer, std::span<const std::byte> bytes) = 0;  // copies
  virtual bool poll_control(ControlFrame* frame) = 0;

  // A peer whose process has ended or whose transport is gone, once for each, where that can be noticed. Its
  // frames should be read first; messages that it has sent still arrive.
  virtual std::optional<int> poll_departure() { return std::nullopt; }

  virtual PeerMemory* peer_memory() { return nullptr; }
};

// What ranks must be for a transport to reach them.
enum class Between { threads, processes };

struct TransportEntry {
  std::string name;
  std::string summary;
  int priority = 0;  // the router prefers higher: 10 is what reaches any rank, 20 what also maps memory
  Between between = Between::processes;
  bool mapped = false;  // it has a PeerMemory
  // Null when this transport cannot work here; then *why says why.
  std::unique_ptr<Transport> (*create)(const Environment& environment, std::string* why) = nullptr;
};

}  // namespace pycomm
