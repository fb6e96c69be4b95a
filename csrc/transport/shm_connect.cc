#include "transport/shm_connect.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "core/error.h"

namespace pycomm::shm {
namespace {

using Clock = std::chrono::steady_clock;

// How often the sockets are looked at: a look is a system call, and who waits calls without end.
constexpr auto kLookEvery = std::chrono::microseconds(50);
constexpr std::uint64_t kListener = ~std::uint64_t{0};
constexpr std::size_t kNameBytes = 39;  // "pycomm-" and 128 random bits

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  const int code = errno;
  throw TransportError(text(parts..., ": ", std::strerror(code)));
}

std::string random_name() {
  std::array<unsigned char, 16> random;
  if (getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size()))
    fail("getrandom failed");
  std::string name = "pycomm-";
  for (unsigned char byte : random) {
    name += "0123456789abcdef"[byte >> 4];
    name += "0123456789abcdef"[byte & 15];
  }
  return name;
}

int open_socket() {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket(AF_UNIX) failed");
  return fd;
}

// Calls bind or connect: a leading zero byte makes a name abstract.
template <class Call>
int with_address(const std::string& name, Call call) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (name.size() + 1 > sizeof(address.sun_path)) return -1;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return call(reinterpret_cast<const sockaddr*>(&address),
              static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size()));
}

int connect_to(int socket, const std::string& name) {
  return with_address(name, [&](auto* address, auto length) { return connect(socket, address, length); });
}

bool is_of_our_user(int socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

// Heaps of this process, by name: ranks that are its threads see each other's at the same addresses. Two
// mappings of one file would hide their races from a sanitizer.
struct Mapped {
  std::mutex mutex;
  std::map<std::string, std::weak_ptr<Mapping>> heaps;
};

Mapped& mapped_here() {
  static auto* const mapped = new Mapped;
  return *mapped;
}

std::shared_ptr<Mapping> map_heap(const std::string& name, int fd) {
  {
    const std::lock_guard lock(mapped_here().mutex);
    const auto found = mapped_here().heaps.find(name);
    if (found != mapped_here().heaps.end())
      if (auto mapping = found->second.lock()) return mapping;
  }
  struct stat status{};
  if (fstat(fd, &status) != 0) fail("fstat of a peer's heap failed");
  if ((fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK) == 0) throw TransportError("a peer's heap is not sealed");
  return std::make_shared<Mapping>(fd, static_cast<std::size_t>(status.st_size));
}

}  // namespace

struct Neighbours::Hello {
  std::int32_t rank = -1;
  std::uint64_t line = 0;
  std::array<char, kNameBytes> name{};
};

Neighbours::Neighbours(int rank, int size, Heap& heap)
    : rank_(rank),
      name_(random_name()),
      file_(heap.take_descriptor()),
      listener_(open_socket()),
      events_(epoll_create1(EPOLL_CLOEXEC)),
      peers_(size),
      next_caller_(size) {
  if (!events_) fail("epoll_create1 failed");
  const auto take_name = [&](auto* address, auto length) { return bind(listener_.get(), address, length); };
  if (with_address(name_, take_name) != 0 || listen(listener_.get(), SOMAXCONN) != 0)
    fail("cannot listen on an abstract socket");
  watch(listener_.get(), kListener);
  const std::lock_guard lock(mapped_here().mutex);
  mapped_here().heaps[name_] = heap.mapping();
}

Neighbours::~Neighbours() {
  const std::lock_guard lock(mapped_here().mutex);
  mapped_here().heaps.erase(name_);
}

void Neighbours::watch(int fd, std::uint64_t id) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = id;
  if (epoll_ctl(events_.get(), EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl failed");
}

// The kernel answers for the peer. A full queue of callers means that somebody listens.
bool Neighbours::reaches(int peer, const std::string& name) {
  const Descriptor probe(open_socket());
  if (connect_to(probe.get(), name) == 0 ? !is_of_our_user(probe.get()) : errno != EAGAIN) return false;
  peers_.at(peer).name = name;
  return true;
}

void Neighbours::offer(int peer, std::uint64_t line) {
  peers_[peer].line = line;
  if (!call(peer)) uncalled_.push_back(peer);
}

// False: to be tried again.
bool Neighbours::call(int peer) {
  Peer& to = peers_[peer];
  if (to.lost) return true;
  to.socket.reset(open_socket());
  if (connect_to(to.socket.get(), to.name) != 0) {
    if (errno == EAGAIN) return false;
    if (errno != ECONNREFUSED) fail("cannot connect to rank ", peer);
    lose(peer);
    return true;
  }
  Hello hello{.rank = rank_, .line = to.line};
  std::memcpy(hello.name.data(), name_.data(), kNameBytes);
  iovec part{&hello, sizeof hello};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int));
  const int fd = file_.get();
  std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
  if (sendmsg(to.socket.get(), &message, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof hello)) {
    if (errno != EPIPE && errno != ECONNRESET) fail("cannot hand the heap to rank ", peer);
    lose(peer);
    return true;
  }
  watch(to.socket.get(), static_cast<std::uint64_t>(peer));
  return true;
}

void Neighbours::lose(int peer) {
  Peer& gone = peers_[peer];
  gone.socket.reset();
  if (!std::exchange(gone.lost, true)) departures_.push_back(peer);
}

void Neighbours::accept_callers() {
  for (;;) {
    const int fd = accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR)) return;
    if (fd < 0) fail("cannot accept a peer");
    Caller& caller = callers_[next_caller_];
    caller.socket.reset(fd);
    watch(fd, next_caller_++);
    if (!is_of_our_user(fd) || !hear(caller)) callers_.erase(next_caller_ - 1);
  }
}

// What a caller has to say: once its heap, then nothing until the end. False: it has hung up.
bool Neighbours::hear(Caller& caller) {
  Hello hello;
  iovec part{&hello, sizeof hello};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t bytes = recvmsg(caller.socket.get(), &message, MSG_CMSG_CLOEXEC);
  if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  const cmsghdr* const rights = bytes > 0 ? CMSG_FIRSTHDR(&message) : nullptr;
  Descriptor file;
  if (rights && rights->cmsg_type == SCM_RIGHTS) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(rights), sizeof fd);
    file.reset(fd);
  }
  const bool known = bytes == sizeof hello && hello.rank >= 0 &&
                     hello.rank < static_cast<int>(peers_.size()) && hello.rank != rank_ && file &&
                     std::string(hello.name.data(), kNameBytes) == peers_[hello.rank].name;
  if (!known || caller.peer >= 0) {
    if (caller.peer >= 0) lose(caller.peer);
    return false;
  }
  caller.peer = hello.rank;
  arrivals_.push_back({hello.rank, map_heap(peers_[hello.rank].name, file.get()), hello.line});
  return true;
}

void Neighbours::look() {
  const auto now = Clock::now();
  if (now < next_look_) return;
  next_look_ = now + kLookEvery;
  while (!uncalled_.empty() && call(uncalled_.front())) uncalled_.pop_front();
  std::array<epoll_event, 64> events;
  const int count = epoll_wait(events_.get(), events.data(), static_cast<int>(events.size()), 0);
  for (int i = 0; i < count; ++i) {
    const std::uint64_t id = events[i].data.u64;
    if (id == kListener) {
      accept_callers();
    } else if (id < peers_.size()) {
      lose(static_cast<int>(id));  // nobody ever writes to us there
    } else if (const auto caller = callers_.find(id); caller != callers_.end() && !hear(caller->second)) {
      callers_.erase(caller);
    }
  }
}

std::optional<Arrival> Neighbours::arrive() {
  if (arrivals_.empty()) look();
  if (arrivals_.empty()) return std::nullopt;
  Arrival arrival = std::move(arrivals_.front());
  arrivals_.pop_front();
  return arrival;
}

// Not looked for here: what a peer has sent before it went is to be seen first.
std::optional<int> Neighbours::depart() {
  if (departures_.empty()) return std::nullopt;
  const int peer = departures_.front();
  departures_.pop_front();
  return peer;
}

}  // namespace pycomm::shm
