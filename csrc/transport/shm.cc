// Ranks of one node, through memory that they share. No daemon, no file system, no special right: works in a
// container with a small /dev/shm and without ptrace.
//
//   shm_heap       the memory: one file without a name per rank, mapped by its peers
//   shm_connect    how the files reach the peers, and how the end of a peer is noticed
//   shm_ring       what the two ends of a line write and read, and in which order
//   shm_outgoing   messages from here; shm_incoming: messages to here
//
// Among threads of one process (for tests and sanitizers: a handle "shm" asks for it) all this is the same,
// but that a heap has one mapping.
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.h"
#include "transport/inproc.h"
#include "transport/shm_connect.h"
#include "transport/shm_descriptor.h"
#include "transport/shm_heap.h"
#include "transport/shm_incoming.h"
#include "transport/shm_outgoing.h"
#include "transport/tickets.h"
#include "transport/transport.h"

namespace pycomm {
namespace {

using shm::BlockCache;
using shm::Heap;
using shm::Incoming;
using shm::Neighbours;
using shm::Outgoing;
using shm::Receive;
using shm::Send;

// What has been copied from a peer should still be in the cache when it is added.
constexpr Pacing kPacing{.segment_bytes = 1 << 17, .window = 4};

struct Post {
  int peer = -1;
  bool sends = false;
  Send send;
  Receive receive;
};

class ShmTransport final : public Transport, public PeerMemory {
 public:
  ShmTransport(int rank, int size, std::size_t heap_bytes)
      : rank_(rank),
        heap_(std::make_shared<Heap>(heap_bytes)),
        blocks_(std::make_shared<BlockCache>(heap_)),
        neighbours_(rank, size, *heap_),
        outgoing_(size),
        incoming_(size) {}

  ~ShmTransport() override {
    posts_.for_each_taken([&](Post& post) {
      if (post.sends) outgoing_[post.peer]->cancel(post.send);
    });
  }

  std::string address() const override { return neighbours_.name(); }
  bool reaches(int peer, const std::string& address) override { return neighbours_.reaches(peer, address); }
  void connect(int peer) override { to(peer); }
  Pacing pacing(int) const override { return kPacing; }

  Ticket post_send(int peer, Tag tag, std::span<const std::byte> bytes) override {
    Outgoing& line = to(peer);
    const Ticket ticket = fresh(peer, true);
    Send& send = posts_[ticket].send = {};
    send.tag = tag;
    send.bytes = bytes;
    try {
      line.post(send);
    } catch (...) {
      line.cancel(send);
      posts_.give_back(ticket);
      throw;
    }
    return ticket;
  }

  Ticket post_recv(int peer, Tag tag, std::span<std::byte> bytes) override {
    Incoming& line = from(peer);
    const Ticket ticket = fresh(peer, false);
    Receive& receive = posts_[ticket].receive = {};
    receive.tag = tag;
    receive.into = bytes;
    line.post(receive);
    return ticket;
  }

  std::optional<std::size_t> poll(Ticket ticket) override {
    Post& post = posts_[ticket];
    const auto bytes = post.sends ? poll_send(post) : poll_receive(post);
    if (bytes) posts_.give_back(ticket);
    return bytes;
  }

  bool cancel(Ticket ticket) override {
    Post& post = posts_[ticket];
    if (post.sends && !outgoing_[post.peer]->cancel(post.send)) return false;
    if (!post.sends) incoming_[post.peer].cancel(post.receive);
    posts_.give_back(ticket);
    return true;
  }

  void post_control(int peer, std::span<const std::byte> bytes) override {
    PYCOMM_CHECK(bytes.size() <= kControlBytes, "a control frame of ", bytes.size(), " bytes to rank ", peer,
                 ": expected at most ", kControlBytes);
    to(peer).post_frame(bytes);
  }

  bool poll_control(ControlFrame* frame) override {
    meet_arrivals();
    for (auto& line : outgoing_)
      if (line) line->flush_frames();
    for (std::size_t peer = 0; peer < incoming_.size(); ++peer) {
      if (!incoming_[peer].read_frame(&frame->bytes)) continue;
      frame->peer = static_cast<int>(peer);
      return true;
    }
    return false;
  }

  std::optional<int> poll_departure() override { return neighbours_.depart(); }

  // ---- memory

  PeerMemory* peer_memory() override { return this; }

  std::optional<Region> describe(std::span<std::byte> memory) override {
    if (memory.empty()) return Region{};
    if (!heap_->mapping()->contains(memory)) return std::nullopt;
    return Region{heap_->offset_of(memory.data()), memory.size()};
  }

  std::byte* map(int peer, const Region& region) override {
    PYCOMM_DCHECK(incoming_[peer].attached());
    const shm::Mapping& heap = incoming_[peer].heap();
    PYCOMM_DCHECK(region.base <= heap.bytes() && region.bytes <= heap.bytes() - region.base);
    return heap.data() + region.base;
  }

  std::shared_ptr<std::byte> allocate(std::size_t bytes) override {
    // An eighth is left to messages.
    const std::size_t whole = heap_->mapping()->bytes(), free = heap_->free_bytes();
    std::byte* const memory =
        free >= whole / 8 && bytes <= free - whole / 8 ? heap_->allocate(bytes) : nullptr;
    if (!memory) no_room(bytes);
    return {memory, [heap = heap_](std::byte* block) { heap->free(block); }};
  }

  std::shared_ptr<std::byte> borrow(std::size_t bytes) override {
    std::byte* const memory = blocks_->take(bytes);
    if (!memory) no_room(bytes);
    return {memory, [blocks = blocks_, bytes](std::byte* block) { blocks->give_back(block, bytes); }};
  }

 private:
  [[noreturn]] void no_room(std::size_t bytes) const {
    throw TransportError(text("the shared heap of ", heap_->mapping()->bytes() >> 20, " MB has no room for ",
                              bytes,
                              " bytes: set PYCOMM_HEAP_MB higher, or keep fewer arrays of comm.empty()"));
  }

  void check_rank(int peer) const {
    const int size = static_cast<int>(incoming_.size());
    PYCOMM_CHECK(peer >= 0 && peer < size && peer != rank_, "rank ", peer, " is not another one of the ",
                 size, " ranks of this world");
  }

  Outgoing& to(int peer) {
    check_rank(peer);
    if (!outgoing_[peer]) {
      auto line = std::make_unique<Outgoing>(*heap_, *blocks_, peer);
      neighbours_.offer(peer, line->offset());
      outgoing_[peer] = std::move(line);
    }
    return *outgoing_[peer];
  }

  Incoming& from(int peer) {
    check_rank(peer);
    return incoming_[peer];
  }

  void meet_arrivals() {
    while (const auto arrival = neighbours_.arrive()) incoming_[arrival->peer].attach(*arrival);
  }

  Ticket fresh(int peer, bool sends) {
    const Ticket ticket = posts_.take();
    posts_[ticket].peer = peer;
    posts_[ticket].sends = sends;
    return ticket;
  }

  std::optional<std::size_t> poll_send(Post& post) {
    if (!outgoing_[post.peer]->done(post.send)) return std::nullopt;
    return post.send.bytes.size();
  }

  std::optional<std::size_t> poll_receive(Post& post) {
    Receive& receive = post.receive;
    if (receive.state == Receive::State::waiting) {
      Incoming& line = incoming_[post.peer];
      if (!line.attached()) meet_arrivals();
      line.read_for(receive);
    }
    if (receive.state == Receive::State::done) return receive.arrived;
    if (receive.state != Receive::State::too_large) return std::nullopt;
    receive.state = Receive::State::told;
    throw TransportError(text("rank ", rank_, " posted a receive of ", receive.into.size(),
                              " bytes, and rank ", post.peer, " sent ", receive.arrived));
  }

  const int rank_;
  const std::shared_ptr<Heap> heap_;  // shared with the arrays in it
  const std::shared_ptr<BlockCache> blocks_;
  Neighbours neighbours_;
  std::vector<std::unique_ptr<Outgoing>> outgoing_;  // by peer, once used
  std::vector<Incoming> incoming_;                   // by peer
  TicketTable<Post> posts_;
};

// Threads come here for tests alone: they have no need of it.
bool serves(const Environment& environment, std::string* why) {
  const auto handle = environment.handles.find("shm");
  if (handle == environment.handles.end()) {
    if (environment.size == 1) *why = "a rank alone has nobody to share memory with";
    if (environment.handles.contains("inproc")) *why = "ranks that are threads share all memory";
    return why->empty();
  }
  const int size = reinterpret_cast<const InprocFabric*>(handle->second)->size();
  PYCOMM_CHECK(environment.size == size && environment.rank >= 0 && environment.rank < size, "rank ",
               environment.rank, " of ", environment.size, " in a world of ", size, " threads");
  return true;
}

std::unique_ptr<Transport> create(const Environment& environment, std::string* why) {
  why->clear();
  if (!serves(environment, why)) return nullptr;
  try {
    return std::make_unique<ShmTransport>(environment.rank, environment.size,
                                          Heap::choose_bytes(environment.heap_bytes, environment.size));
  } catch (const TransportError& error) {
    *why = error.what();
    return nullptr;
  }
}

const Register<TransportEntry> kShm({.name = "shm",
                                     .summary = "ranks of one node; memory that they share",
                                     .priority = 15,
                                     .mapped = true,
                                     .create = create});

}  // namespace
}  // namespace pycomm
