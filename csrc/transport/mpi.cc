// Messages over any MPI of level 3 with MPI_THREAD_MULTIPLE, on a duplicate of the given communicator.
//
// MPI copies a small message away and calls it sent, however late its receiver is. Left alone, a sender could
// so bury a receiver; therefore one in 16 messages to a peer is synchronous: it is done when its receive is
// matched, and until then the messages of its stream behind it fill the executor's window.
//
// A receive smaller than its message is an error here as everywhere, but not a harmless one: Open MPI 5.0.11
// reports the truncation and yet stores all bytes of a message above its eager limit (4 KiB within a node, 64
// KiB over TCP), past the end of the receive. So whoever posts a large receive must know the size: the
// executor does, by the headers.
//
// Collective: create(), because it duplicates the communicator. Nothing else.
#include <dlfcn.h>
#include <mpi.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <climits>
#include <cstdint>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "transport/mpi_info.h"
#include "transport/tickets.h"
#include "transport/transport.h"

namespace pycomm {
namespace {

using Clock = std::chrono::steady_clock;

// Multiples of the golden ratio, as 32-bit fractions of one, fall evenly: one in 16 below 1/16, and also of
// every second or third, when the streams of several operations take turns.
constexpr std::uint32_t kGoldenRatio = 0x9E3779B9;
constexpr bool is_synchronous(std::uint32_t number) {
  return number * kGoldenRatio < 1U << 28;
}

constexpr int kControlReceives = 16;  // posted at any time
// Control frames that may be on their way from here before posting another one is an error.
constexpr std::size_t kMaxControlSends = 1024;
// How long a receive that cannot be withdrawn, because its message is arriving, may take to finish.
constexpr auto kCancelPatience = std::chrono::milliseconds(20);
// How long the ranks may take to come to create(): the exchange of addresses has found them alive.
constexpr auto kDuplicatePatience = std::chrono::seconds(60);

// Two ranks on 2 cores with 1 MB of L2 each (Open MPI 5.0.11, single copy), ring all-reduce of 16 and 64 MB
// of f32, as fractions of the library's own MPI_Allreduce beside it: 128 and 256 KiB x 2 take 0.8 and 0.55,
// 512 KiB x 4 and everything larger 0.9 to 1.1 and 0.6 to 0.7: what has arrived should still be in the cache
// when it is added.
constexpr Pacing kSameNode{.segment_bytes = 1 << 18, .window = 2};
// Below Open MPI's eager limit over TCP, 64 KiB, with room for headers. Ring all-reduce of 16 MB between
// hosts (Open MPI 5.0.11, `bench network`), as a share of what plain sockets reach: 4 hosts at 1 Gbit/s 60 kB
// x 16 1.00, x 8 and x 64 1.00 and 0.98, 120 kB x 32 and 256 KiB x 4, by rendezvous, 0.92 and 0.97; 2 hosts
// at 10 Gbit/s 60 kB x 16 0.89, x 32 and x 8 0.75, 256 KiB x 4 0.59.
constexpr Pacing kNetwork{.segment_bytes = 60000, .window = 16};

std::string reason(int code) {
  char why[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, why, &length);
  return {why, static_cast<std::size_t>(length)};
}

template <class... Parts>
void check(int code, const char* call, const Parts&... parts) {
  if (code != MPI_SUCCESS) throw TransportError(text(call, " failed", parts..., ": ", reason(code)));
}

bool runs() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized && !finalized;
}

int checked_count(std::size_t bytes, int peer) {
  PYCOMM_CHECK(bytes <= INT_MAX, "a message of ", bytes, " bytes with rank ", peer, ": MPI counts to ",
               INT_MAX, "; use smaller segments");
  return static_cast<int>(bytes);
}

std::size_t received(const MPI_Status& status) {
  int count = 0;
  MPI_Get_count(&status, MPI_BYTE, &count);
  return count == MPI_UNDEFINED ? 0 : static_cast<std::size_t>(count);
}

// Folds our 64 bits of tag into those that MPI has (at least 15): two fifths for the context, the rest
// for the sequence, which wraps around; the highest tag is for control. With the 31 bits of Open MPI streams
// of one context fold together when they are 2^18 operations apart. A context too large is refused: two
// communicators may be in flight at once.
class TagSpace {
 public:
  explicit TagSpace(int highest)
      : highest_(highest),
        context_bits_(usable_bits(highest) * 2 / 5),
        sequence_bits_(usable_bits(highest) - context_bits_) {}

  int control() const { return highest_; }
  int fold(Tag tag) const {
    if (tag.context >> context_bits_ != 0)
      throw TransportError(text("the tags of this MPI (up to ", highest_, ") are enough for ",
                                1u << context_bits_,
                                " message contexts, four for each split() that a rank has taken part in"));
    const std::uint32_t sequence = tag.sequence & ((1u << sequence_bits_) - 1);
    return static_cast<int>(tag.context << sequence_bits_ | sequence);
  }

 private:
  static int usable_bits(int highest) {
    return static_cast<int>(std::bit_width(static_cast<unsigned>(highest))) - 1;
  }

  int highest_;
  int context_bits_;
  int sequence_bits_;
};

// The communicator, and the two ways to use it.
class Wire {
 public:
  Wire(MPI_Comm comm, int size) : comm_(comm), posted_(size) {}

  MPI_Request send(int peer, int tag, std::span<const std::byte> bytes) {
    const int count = checked_count(bytes.size(), check_rank(peer));
    MPI_Request request = MPI_REQUEST_NULL;
    if (is_synchronous(++posted_[peer]))
      check(MPI_Issend(bytes.data(), count, MPI_BYTE, peer, tag, comm_, &request), "MPI_Issend", " to rank ",
            peer);
    else
      check(MPI_Isend(bytes.data(), count, MPI_BYTE, peer, tag, comm_, &request), "MPI_Isend", " to rank ",
            peer);
    return request;
  }

  MPI_Request receive(int peer, int tag, std::span<std::byte> bytes) {
    const int count = checked_count(bytes.size(), peer == MPI_ANY_SOURCE ? peer : check_rank(peer));
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Irecv(bytes.data(), count, MPI_BYTE, peer, tag, comm_, &request), "MPI_Irecv", " from rank ",
          peer);
    return request;
  }

  // Where MPI survives the death of a rank (ULFM), receives from anyone stand still until it has been taken
  // note of.
  void acknowledge_failures() {
    using Acknowledge = int (*)(MPI_Comm);
    if (const auto call = reinterpret_cast<Acknowledge>(dlsym(RTLD_DEFAULT, "MPIX_Comm_failure_ack")))
      call(comm_);
  }

 private:
  int check_rank(int peer) const {
    const int size = static_cast<int>(posted_.size());
    PYCOMM_CHECK(peer >= 0 && peer < size, "rank ", peer, " is not one of the ", size,
                 " ranks of this world");
    return peer;
  }

  MPI_Comm comm_;
  std::vector<std::uint32_t> posted_;  // messages to each peer
};

// True once MPI is through with the memory of the request, be it with an error.
bool over(MPI_Request* request) {
  int done = 0;
  const int code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
  return done || code != MPI_SUCCESS;
}

bool withdraw_receive(MPI_Request* request, Clock::duration patience) {
  MPI_Cancel(request);  // without effect where the message is arriving already
  const auto until = Clock::now() + patience;
  while (!over(request)) {
    if (Clock::now() >= until) return false;
    std::this_thread::yield();
  }
  return true;
}

// Control frames: receives from anyone, posted ahead, and sends from buffers of our own, taken back when
// somebody next comes by.
class ControlChannel {
 public:
  ControlChannel(Wire& wire, int tag) : wire_(wire), tag_(tag) {
    for (Frame& frame : receives_) post(frame);
  }

  void send(int peer, std::span<const std::byte> bytes) {
    PYCOMM_CHECK(bytes.size() <= kControlBytes, "a control frame of ", bytes.size(), " bytes to rank ", peer,
                 ": expected at most ", kControlBytes);
    retire(sends_.size() < kMaxControlSends ? 2 : busy_.size());  // two per new one keep up
    if (spare_.empty() && sends_.size() == kMaxControlSends)
      throw TransportError(text("no control frame can be sent to rank ", peer, ": ", kMaxControlSends,
                                " control frames are on their way to ranks that do not read them"));
    if (spare_.empty()) spare_.push_back(&sends_.emplace_back());
    Frame& frame = *spare_.back();
    std::copy(bytes.begin(), bytes.end(), frame.bytes.begin());
    frame.peer = peer;
    frame.request = wire_.send(peer, tag_, std::span(frame.bytes).first(bytes.size()));
    spare_.pop_back();
    busy_.push_back(&frame);
  }

  // Frames match the posted receives in the order of posting, so only the eldest is looked at. A frame of
  // ours that was lost is thrown here, not at the next send: that one may go to another rank.
  bool poll(ControlFrame* out) {
    retire(1);
    if (!lost_.empty()) throw TransportError(std::exchange(lost_, ""));
    Frame& eldest = receives_[eldest_];
    int done = 0;
    MPI_Status status{};
    const int code = MPI_Test(&eldest.request, &done, &status);
    if (std::exchange(failure_, code) != code && code != MPI_SUCCESS) {
      wire_.acknowledge_failures();
      throw TransportError(text("MPI_Test of a control frame failed: ", reason(code)));
    }
    if (!done || code != MPI_SUCCESS) return false;
    out->peer = status.MPI_SOURCE;
    out->bytes.assign(eldest.bytes.begin(), eldest.bytes.begin() + received(status));
    post(eldest);
    eldest_ = (eldest_ + 1) % receives_.size();
    return true;
  }

  // Whether MPI is through with all buffers afterwards. Frames not yet received are lost.
  bool close() {
    bool idle = true;
    for (Frame& frame : receives_) idle &= withdraw_receive(&frame.request, Clock::duration::zero());
    for (Frame* frame : busy_) idle &= over(&frame->request);
    return idle;
  }

 private:
  struct Frame {
    MPI_Request request = MPI_REQUEST_NULL;
    int peer = MPI_ANY_SOURCE;
    std::array<std::byte, kControlBytes> bytes;
  };

  void post(Frame& frame) { frame.request = wire_.receive(MPI_ANY_SOURCE, tag_, frame.bytes); }

  // Looks at the eldest sends, at most so many.
  void retire(std::size_t looks) {
    for (looks = std::min(looks, busy_.size()); looks > 0; --looks) {
      Frame* const frame = busy_.front();
      busy_.pop_front();
      int done = 0;
      const int code = MPI_Test(&frame->request, &done, MPI_STATUS_IGNORE);
      if (code != MPI_SUCCESS)
        lost_ = text("a control frame to rank ", frame->peer, " was lost: ", reason(code));
      if (done || code != MPI_SUCCESS)
        spare_.push_back(frame);
      else
        busy_.push_back(frame);
    }
  }

  Wire& wire_;
  const int tag_;
  std::array<Frame, kControlReceives> receives_;
  std::size_t eldest_ = 0;
  std::deque<Frame> sends_;  // all there are: each is busy or spare
  std::deque<Frame*> busy_;
  std::vector<Frame*> spare_;
  std::string lost_;           // what to throw at the next poll
  int failure_ = MPI_SUCCESS;  // of the last poll
};

enum class Direction { send, receive };

struct Post {
  MPI_Request request = MPI_REQUEST_NULL;
  Direction direction = Direction::send;
  int peer = -1;
  std::size_t bytes = 0;
  int failure = MPI_SUCCESS;  // a code; poll() has thrown it
  bool waited_for = false;    // by cancel(), once
};

class MpiTransport final : public Transport {
 public:
  MpiTransport(MPI_Comm comm, const Environment& environment, int highest_tag, std::vector<bool> on_this_node)
      : rank_(environment.rank),
        tags_(highest_tag),
        on_this_node_(std::move(on_this_node)),
        state_(std::make_unique<State>(comm, environment.size, tags_.control())) {}

  // Tickets still out are cancelled; the memory of those that cannot be is still in use, as cancel() would
  // have said. The control buffers that MPI may still use are then left to it for ever, as is the
  // communicator always: a peer's last control frame may be on its way, and MPI gives the number of a freed
  // communicator to the next one, which would take the frame for its own (Open MPI 5.0.11: messages then
  // arrive out of order).
  ~MpiTransport() override {
    if (!runs()) return;  // MPI is finalised
    bool idle = state_->control.close();
    posts_.for_each_taken([&](Post& post) { idle &= withdraw(post, Clock::duration::zero()); });
    if (!idle) state_.release();
  }

  std::string address() const override { return ""; }
  bool reaches(int, const std::string&) override { return true; }  // all ranks are in the communicator
  Pacing pacing(int peer) const override { return on_this_node_.at(peer) ? kSameNode : kNetwork; }
  bool crosses_network(int peer) const override { return !on_this_node_.at(peer); }

  Ticket post_send(int peer, Tag tag, std::span<const std::byte> bytes) override {
    return keep(state_->wire.send(peer, tags_.fold(tag), bytes), Direction::send, peer, bytes.size());
  }

  Ticket post_recv(int peer, Tag tag, std::span<std::byte> bytes) override {
    return keep(state_->wire.receive(peer, tags_.fold(tag), bytes), Direction::receive, peer, bytes.size());
  }

  std::optional<std::size_t> poll(Ticket ticket) override {
    Post& post = posts_[ticket];
    if (post.failure != MPI_SUCCESS) return std::nullopt;
    int done = 0;
    MPI_Status status{};
    post.failure = MPI_Test(&post.request, &done, &status);
    if (post.failure != MPI_SUCCESS) fail(post, status);
    if (!done) return std::nullopt;
    posts_.give_back(ticket);
    return post.direction == Direction::send ? post.bytes : received(status);
  }

  bool cancel(Ticket ticket) override {
    if (!withdraw(posts_[ticket], kCancelPatience)) return false;
    posts_.give_back(ticket);
    return true;
  }

  void post_control(int peer, std::span<const std::byte> bytes) override {
    state_->control.send(peer, bytes);
  }
  bool poll_control(ControlFrame* frame) override { return state_->control.poll(frame); }

 private:
  // What may have to outlive us.
  struct State {
    State(MPI_Comm comm, int size, int control_tag) : wire(comm, size), control(wire, control_tag) {}
    Wire wire;
    ControlChannel control;
  };

  Ticket keep(MPI_Request request, Direction direction, int peer, std::size_t bytes) {
    const Ticket ticket = posts_.take();
    posts_[ticket] = {request, direction, peer, bytes, MPI_SUCCESS, false};
    return ticket;
  }

  static bool withdraw(Post& post, Clock::duration patience) {
    if (post.failure != MPI_SUCCESS) return true;
    if (std::exchange(post.waited_for, true)) patience = Clock::duration::zero();
    return post.direction == Direction::send ? over(&post.request)
                                             : withdraw_receive(&post.request, patience);
  }

  [[noreturn]] void fail(const Post& post, const MPI_Status& status) const {
    int error_class = MPI_SUCCESS;
    MPI_Error_class(post.failure, &error_class);
    const bool sends = post.direction == Direction::send;
    if (error_class == MPI_ERR_TRUNCATE && received(status) > post.bytes)
      throw TransportError(text("rank ", rank_, " posted a receive of ", post.bytes, " bytes, and rank ",
                                post.peer, " sent ", received(status)));
    throw TransportError(text("MPI_Test of a ", sends ? "send" : "receive", " of ", post.bytes, " bytes ",
                              sends ? "to" : "from", " rank ", post.peer, " failed: ", reason(post.failure)));
  }

  const int rank_;
  const TagSpace tags_;
  const std::vector<bool> on_this_node_;
  std::unique_ptr<State> state_;
  TicketTable<Post> posts_;
};

constexpr std::array<std::pair<int, const char*>, 4> kThreadLevels = {
    {{MPI_THREAD_SINGLE, "MPI_THREAD_SINGLE"},
     {MPI_THREAD_FUNNELED, "MPI_THREAD_FUNNELED"},
     {MPI_THREAD_SERIALIZED, "MPI_THREAD_SERIALIZED"},
     {MPI_THREAD_MULTIPLE, "MPI_THREAD_MULTIPLE"}}};

std::string thread_level() {
  int provided = MPI_THREAD_SINGLE;
  MPI_Query_thread(&provided);
  for (auto [level, name] : kThreadLevels)
    if (level == provided) return name;
  return text("thread level ", provided);
}

MPI_Comm duplicate(MPI_Comm user) {
  struct Duplication {
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  auto duplication = std::make_unique<Duplication>();
  check(MPI_Comm_idup(user, &duplication->comm, &duplication->request), "MPI_Comm_idup");
  const auto until = Clock::now() + kDuplicatePatience;
  for (int done = 0; !done; std::this_thread::yield()) {
    check(MPI_Test(&duplication->request, &done, MPI_STATUS_IGNORE), "MPI_Comm_idup");
    if (done || Clock::now() < until) continue;
    duplication.release();  // MPI may still write to it
    throw Timeout(
        text("not all ranks came to create the mpi transport within ", kDuplicatePatience.count(), " s"));
  }
  check(MPI_Comm_set_errhandler(duplication->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  return duplication->comm;
}

std::vector<bool> find_node_peers(MPI_Comm comm, int size, int rank) {
  MPI_Comm node = MPI_COMM_NULL;
  check(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
  MPI_Group all_group = MPI_GROUP_NULL, node_group = MPI_GROUP_NULL;
  check(MPI_Comm_group(comm, &all_group), "MPI_Comm_group");
  check(MPI_Comm_group(node, &node_group), "MPI_Comm_group");
  std::vector<int> ranks(size), node_ranks(size);
  for (int peer = 0; peer < size; ++peer) ranks[peer] = peer;
  check(MPI_Group_translate_ranks(all_group, size, ranks.data(), node_group, node_ranks.data()),
        "MPI_Group_translate_ranks");
  MPI_Group_free(&all_group);
  MPI_Group_free(&node_group);
  MPI_Comm_free(&node);
  std::vector<bool> out(size);
  for (int peer = 0; peer < size; ++peer) out[peer] = node_ranks[peer] != MPI_UNDEFINED;
  return out;
}

int find_highest_tag() {
  int* highest = nullptr;
  int found = 0;
  check(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &highest, &found), "MPI_Comm_get_attr of MPI_TAG_UB");
  return found ? *highest : 32767;  // what every MPI has
}

std::unique_ptr<Transport> create(const Environment& environment, std::string* why) {
  if (!runs()) {
    *why = mpi_info().finalized ? "MPI is already finalised" : "MPI is not initialised";
    return nullptr;
  }
  const auto handle = environment.handles.find("mpi");
  if (handle == environment.handles.end()) {
    *why = "no MPI communicator was given";
    return nullptr;
  }
  if (const std::string level = thread_level(); level != "MPI_THREAD_MULTIPLE")
    throw TransportError(text("MPI runs with ", level,
                              ", but pycomm calls it from several threads: initialise it with ",
                              "MPI_Init_thread(MPI_THREAD_MULTIPLE), or leave that to pycomm"));
  const MPI_Comm user = MPI_Comm_f2c(static_cast<MPI_Fint>(handle->second));
  PYCOMM_CHECK(user != MPI_COMM_NULL, "the handle 'mpi' is MPI_COMM_NULL");
  int rank = 0, size = 0;
  check(MPI_Comm_rank(user, &rank), "MPI_Comm_rank");
  check(MPI_Comm_size(user, &size), "MPI_Comm_size");
  PYCOMM_CHECK(rank == environment.rank && size == environment.size, "rank ", environment.rank, " of ",
               environment.size, " on an MPI communicator where it is rank ", rank, " of ", size);
  const MPI_Comm comm = duplicate(user);
  return std::make_unique<MpiTransport>(comm, environment, find_highest_tag(),
                                        find_node_peers(comm, size, rank));
}

const Register<TransportEntry> kMpi(
    {.name = "mpi", .summary = "any MPI with MPI_THREAD_MULTIPLE", .priority = 10, .create = create});

}  // namespace

MpiInfo mpi_info() {
  MpiInfo info;
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(version, &length);
  info.version = version;
  // Not the address of MPI_Init as compiled in: that may be a stub in our own object.
  Dl_info library{};
  void* const symbol = dlsym(RTLD_DEFAULT, "MPI_Init");
  if (symbol && dladdr(symbol, &library) != 0 && library.dli_fname) info.path = library.dli_fname;
  info.ulfm = dlsym(RTLD_DEFAULT, "MPIX_Comm_revoke") != nullptr;
  int flag = 0;
  MPI_Initialized(&flag);
  info.initialized = flag != 0;
  MPI_Finalized(&flag);
  info.finalized = flag != 0;
  if (runs()) info.thread_level = thread_level();
  return info;
}

void mpi_abort(int code) {
  if (runs()) MPI_Abort(MPI_COMM_WORLD, code);
}

}  // namespace pycomm
