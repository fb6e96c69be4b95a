// Ranks as threads, plain on purpose: the transport of tests, sanitizers and teaching.
//
// A message is copied once, from the sender's memory to the receiver's, by whoever posts second; until then
// the first post is parked at the destination. Copies are made under the lock of the destination's inbox. So
// a cancelled ticket is never in the middle of a copy, and each message orders memory between its two ranks
// as PeerMemory promises. The price is that one rank's arriving messages are copied one after the other.
#include "transport/inproc.h"

#include <atomic>
#include <cstring>
#include <deque>
#include <new>
#include <optional>
#include <tuple>
#include <vector>

#include "transport/tickets.h"
#include "transport/transport.h"

namespace pycomm {
namespace {

// Frames that one rank may leave unread before posting another one to it is an error.
constexpr std::size_t kMaxUnreadFrames = 4096;

struct Inbox;

// One posted send or receive; written by its rank before it is parked, by the copying rank before `done`.
struct Post {
  Inbox* inbox = nullptr;  // of the destination
  std::span<const std::byte> from;
  std::span<std::byte> into;
  int source = -1;
  std::size_t room = 0;           // bytes of `from` or `into`
  std::size_t arrived = 0;        // bytes of the message
  std::atomic<bool> done{false};  // set with release: shows `arrived` and the copy to whoever acquires it
};

using Stream = std::tuple<int, std::uint32_t, std::uint32_t>;  // source and tag
using Parked = std::multimap<Stream, Post*>;                   // equal keys stay in the order of insertion

struct Inbox {
  std::mutex mutex;  // of both; of any stream at most one holds posts
  Parked sends;
  Parked receives;

  std::mutex frames_mutex;
  std::deque<ControlFrame> frames;
};

void copy(Post& send, Post& receive) {
  const std::size_t bytes = send.from.size();
  if (bytes > 0 && bytes <= receive.into.size()) std::memcpy(receive.into.data(), send.from.data(), bytes);
  send.arrived = receive.arrived = bytes;
  send.done.store(true, std::memory_order_release);
  receive.done.store(true, std::memory_order_release);
}

Post* take_first(Parked& parked, const Stream& stream) {
  const auto found = parked.lower_bound(stream);
  if (found == parked.end() || found->first != stream) return nullptr;
  Post* const post = found->second;
  parked.erase(found);
  return post;
}

// After this no other rank knows the post; it is done if a peer was faster.
void withdraw(Post& post) {
  const std::lock_guard lock(post.inbox->mutex);
  const auto is_it = [&](const auto& entry) { return entry.second == &post; };
  if (std::erase_if(post.inbox->sends, is_it) == 0) std::erase_if(post.inbox->receives, is_it);
}

}  // namespace

class InprocFabric::Lane {
 public:
  explicit Lane(int size) : inboxes_(size) {}
  int size() const { return static_cast<int>(inboxes_.size()); }
  Inbox& inbox(int rank) { return inboxes_[rank]; }

 private:
  std::vector<Inbox> inboxes_;
};

InprocFabric::InprocFabric(int size) : size_(size) {
  PYCOMM_CHECK(size >= 1, "a fabric of ", size, " ranks: expected at least 1");
}

InprocFabric::~InprocFabric() = default;

InprocFabric::Lane& InprocFabric::lane(const std::string& transport) {
  const std::lock_guard lock(mutex_);
  auto& lane = lanes_[transport];
  if (!lane) lane = std::make_unique<Lane>(size_);
  return *lane;
}

namespace {

class SharedAddressSpace final : public PeerMemory {
 public:
  std::optional<Region> describe(std::span<std::byte> memory) override {
    return Region{reinterpret_cast<std::uintptr_t>(memory.data()), memory.size()};
  }
  std::byte* map(int, const Region& region) override { return reinterpret_cast<std::byte*>(region.base); }
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override {
    constexpr std::align_val_t kAlignment{64};
    return {static_cast<std::byte*>(::operator new(bytes, kAlignment)),
            [](std::byte* memory) { ::operator delete(memory, kAlignment); }};
  }
};

class InprocTransport final : public Transport {
 public:
  InprocTransport(InprocFabric::Lane& lane, int rank, std::unique_ptr<PeerMemory> peer_memory)
      : lane_(lane), rank_(rank), peer_memory_(std::move(peer_memory)) {}

  ~InprocTransport() override {
    posts_.for_each_taken([](Post& post) { withdraw(post); });
  }

  std::string address() const override { return ""; }
  bool reaches(int, const std::string&) override { return true; }
  // Large segments: nothing is gained by cutting what is one memcpy.
  Pacing pacing(int) const override { return {.segment_bytes = 1 << 18, .window = 4}; }

  Ticket post_send(int peer, Tag tag, std::span<const std::byte> bytes) override {
    Inbox& destination = inbox(peer);
    const auto [ticket, post] = fresh(destination, rank_, bytes.size());
    post.from = bytes;
    const Stream stream{rank_, tag.context, tag.sequence};
    const std::lock_guard lock(destination.mutex);
    if (Post* const receive = take_first(destination.receives, stream))
      copy(post, *receive);
    else
      destination.sends.emplace(stream, &post);
    return ticket;
  }

  Ticket post_recv(int peer, Tag tag, std::span<std::byte> bytes) override {
    inbox(peer);  // checks the rank
    Inbox& destination = inbox(rank_);
    const auto [ticket, post] = fresh(destination, peer, bytes.size());
    post.into = bytes;
    const Stream stream{peer, tag.context, tag.sequence};
    const std::lock_guard lock(destination.mutex);
    if (Post* const send = take_first(destination.sends, stream))
      copy(*send, post);
    else
      destination.receives.emplace(stream, &post);
    return ticket;
  }

  std::optional<std::size_t> poll(Ticket ticket) override {
    Post& post = posts_[ticket];
    if (!post.done.load(std::memory_order_acquire)) return std::nullopt;
    const std::size_t arrived = post.arrived;
    if (arrived > post.room) {                            // never true of a send
      post.done.store(false, std::memory_order_relaxed);  // nor ever again: nobody else knows the post now
      throw TransportError(text("rank ", rank_, " posted a receive of ", post.room, " bytes, and rank ",
                                post.source, " sent ", arrived));
    }
    posts_.give_back(ticket);
    return arrived;
  }

  bool cancel(Ticket ticket) override {
    withdraw(posts_[ticket]);
    posts_.give_back(ticket);
    return true;
  }

  void post_control(int peer, std::span<const std::byte> bytes) override {
    PYCOMM_CHECK(bytes.size() <= kControlBytes, "a control frame of ", bytes.size(), " bytes to rank ", peer,
                 ": expected at most ", kControlBytes);
    Inbox& destination = inbox(peer);
    const std::lock_guard lock(destination.frames_mutex);
    if (destination.frames.size() >= kMaxUnreadFrames)
      throw TransportError(text("rank ", peer, " has left ", kMaxUnreadFrames, " control frames unread"));
    destination.frames.push_back({rank_, {bytes.begin(), bytes.end()}});
  }

  bool poll_control(ControlFrame* frame) override {
    Inbox& own = inbox(rank_);
    const std::lock_guard lock(own.frames_mutex);
    if (own.frames.empty()) return false;
    *frame = std::move(own.frames.front());
    own.frames.pop_front();
    return true;
  }

  PeerMemory* peer_memory() override { return peer_memory_.get(); }

 private:
  Inbox& inbox(int rank) {
    PYCOMM_CHECK(rank >= 0 && rank < lane_.size(), "rank ", rank, " is not one of the ", lane_.size(),
                 " ranks of this world");
    return lane_.inbox(rank);
  }

  std::pair<Ticket, Post&> fresh(Inbox& destination, int source, std::size_t room) {
    const Ticket ticket = posts_.take();
    Post& post = posts_[ticket];
    post.inbox = &destination;
    post.source = source;
    post.room = room;
    post.done.store(false, std::memory_order_relaxed);  // nobody else knows the post yet
    return {ticket, post};
  }

  InprocFabric::Lane& lane_;
  const int rank_;
  const std::unique_ptr<PeerMemory> peer_memory_;
  TicketTable<Post> posts_;
};

InprocFabric* fabric_of(const Environment& environment, std::string* why) {
  const auto handle = environment.handles.find("inproc");
  if (handle == environment.handles.end()) {
    *why = "the ranks are not threads of one process (no handle 'inproc')";
    return nullptr;
  }
  auto* const fabric = reinterpret_cast<InprocFabric*>(handle->second);
  PYCOMM_CHECK(
      environment.size == fabric->size() && environment.rank >= 0 && environment.rank < environment.size,
      "rank ", environment.rank, " of ", environment.size, " on a fabric of ", fabric->size(), " ranks");
  return fabric;
}

std::unique_ptr<Transport> create_copying(const Environment& environment, std::string* why) {
  InprocFabric* const fabric = fabric_of(environment, why);
  if (!fabric) return nullptr;
  return std::make_unique<InprocTransport>(fabric->lane("inproc"), environment.rank, nullptr);
}

std::unique_ptr<Transport> create_mapped(const Environment& environment, std::string* why) {
  InprocFabric* const fabric = fabric_of(environment, why);
  if (!fabric) return nullptr;
  return std::make_unique<InprocTransport>(fabric->lane("inproc_mapped"), environment.rank,
                                           std::make_unique<SharedAddressSpace>());
}

const Register<TransportEntry> kCopying({.name = "inproc",
                                         .summary = "ranks as threads of one process; messages are copied",
                                         .priority = 10,
                                         .between = Between::threads,
                                         .create = create_copying});
const Register<TransportEntry> kMapped(
    {.name = "inproc_mapped",
     .summary = "ranks as threads of one process; they see each other's memory",
     .priority = 20,
     .between = Between::threads,
     .mapped = true,
     .create = create_mapped});

}  // namespace
}  // namespace pycomm
