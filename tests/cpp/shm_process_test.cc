// Shared memory between processes: two that share nothing but a socket for their addresses. A child ends with
// status 0 when its checks held.
#include <dirent.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "bootstrap/bootstrap.h"
#include "check.h"
#include "core/error.h"
#include "engines.h"
#include "transport/transport.h"

namespace pycomm {
namespace {

using Bytes = std::vector<std::byte>;
constexpr Tag kTag{1, 2};
constexpr auto kPatience = std::chrono::seconds(20);

template <class Ready>
void wait_until(Ready ready) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (!ready()) {
    if (std::chrono::steady_clock::now() > until) throw check::Failure("it did not come");
    std::this_thread::yield();
  }
}

// One end of a world of two processes.
class End {
 public:
  End(int rank, int socket) : rank_(rank), socket_(socket) {
    Environment environment{rank, 2, {}};
    environment.heap_bytes = 64 << 20;
    std::string why;
    transport_ = Registry<TransportEntry>::instance().get("shm", "transport").create(environment, &why);
    if (!transport_) throw check::Failure("no shm: " + why);
    const std::string mine = transport_->address();
    CHECK_EQ(write(socket, mine.data(), mine.size()), static_cast<ssize_t>(mine.size()));
    std::string theirs(mine.size(), '\0');
    CHECK_EQ(recv(socket, theirs.data(), theirs.size(), MSG_WAITALL), static_cast<ssize_t>(theirs.size()));
    CHECK(transport_->reaches(1 - rank, theirs));
    CHECK(!transport_->reaches(1 - rank, "pycomm-nobody-has-this-name"));
    CHECK(transport_->reaches(1 - rank, theirs));
    say();  // nobody leaves before both have probed
    hear();
  }

  Transport& operator*() { return *transport_; }
  Transport* operator->() { return transport_.get(); }
  int peer() const { return 1 - rank_; }
  std::uintptr_t socket() const { return static_cast<std::uintptr_t>(socket_); }
  void close() { transport_.reset(); }

  // Beside the transport: one word.
  void say() { CHECK_EQ(write(socket_, "x", 1), 1); }
  void hear() {
    char word = 0;
    CHECK_EQ(::recv(socket_, &word, 1, 0), 1);
  }

  void finish(Ticket ticket) {
    wait_until([&] { return transport_->poll(ticket).has_value(); });
  }
  void send(const Bytes& bytes) { finish(transport_->post_send(peer(), kTag, bytes)); }
  Bytes receive(std::size_t size) {
    Bytes bytes(size);
    finish(transport_->post_recv(peer(), kTag, bytes));
    return bytes;
  }
  void expect_departure() {
    ControlFrame frame;
    wait_until([&] {
      while (transport_->poll_control(&frame)) {
      }
      return transport_->poll_departure() == peer();
    });
  }

 private:
  const int rank_;
  const int socket_;
  std::unique_ptr<Transport> transport_;
};

using Body = std::function<void(End&)>;

pid_t start_rank(int rank, int socket, const Body& body) {
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid != 0) return pid;
  try {
    End end(rank, socket);
    body(end);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
    std::fflush(nullptr);
    _exit(1);
  }
  _exit(0);
}

// Runs two processes; each must end with status 0, or by SIGKILL where `killed` says so.
void run_processes(const Body& first, const Body& second, int killed = -1) {
  std::array<int, 2> sockets;
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()), 0);
  const std::array<pid_t, 2> pids = {start_rank(0, sockets[0], first), start_rank(1, sockets[1], second)};
  ::close(sockets[0]);
  ::close(sockets[1]);
  for (int rank : {0, 1}) {
    int status = -1;
    CHECK_EQ(waitpid(pids[rank], &status, 0), pids[rank]);
    if (rank == killed)
      CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    else
      CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}

// The exchange before everything, over the same kind of socket.
class SocketBootstrap final : public Bootstrap {
 public:
  SocketBootstrap(int rank, int socket) : rank_(rank), socket_(socket) {}
  std::vector<std::string> exchange(const std::string& bytes, double) override {
    std::array<char, 4096> theirs{};
    CHECK_EQ(write(socket_, bytes.data(), bytes.size() + 1), static_cast<ssize_t>(bytes.size() + 1));
    std::size_t length = 0;  // up to the zero byte
    do CHECK_EQ(::recv(socket_, &theirs.at(length), 1, 0), 1);
    while (theirs[length++] != '\0');
    std::vector<std::string> all = {bytes, theirs.data()};
    if (rank_ == 1) std::swap(all[0], all[1]);
    return all;
  }

 private:
  const int rank_;
  const int socket_;
};

const Register<BootstrapEntry> kSocket({"test_socket",
                                        [](const Environment& environment) -> std::unique_ptr<Bootstrap> {
                                          const auto handle = environment.handles.find("test_socket");
                                          if (handle == environment.handles.end()) return nullptr;
                                          return std::make_unique<SocketBootstrap>(
                                              environment.rank, static_cast<int>(handle->second));
                                        }});

std::vector<std::string> open_files() {
  std::vector<std::string> files;
  DIR* const directory = opendir("/proc/self/fd");
  CHECK(directory != nullptr);
  while (const dirent* entry = readdir(directory))
    if (entry->d_name[0] != '.' && std::stoi(entry->d_name) != dirfd(directory))
      files.push_back(entry->d_name);
  closedir(directory);
  return files;
}

bool maps_a_heap() {
  FILE* const maps = std::fopen("/proc/self/maps", "r");
  CHECK(maps != nullptr);
  bool found = false;
  for (std::array<char, 512> line; std::fgets(line.data(), line.size(), maps);)
    found |= std::strstr(line.data(), "memfd:pycomm") != nullptr;
  std::fclose(maps);
  return found;
}

TEST(shm_processes_exchange_messages_of_every_size_from_any_memory) {
  const Body body = [](End& end) {
    const auto heap = end->peer_memory()->allocate(1 << 20);
    for (const std::size_t size : {0, 1, 48, 49, 4096, 4097, 131072, 1 << 20}) {
      for (const bool from_heap : {false, true}) {
        Bytes plain(size, static_cast<std::byte>(size % 251 + end.peer()));
        if (from_heap && size > 0) std::memcpy(heap.get(), plain.data(), size);
        const Ticket sending = end->post_send(
            end.peer(), kTag,
            from_heap ? std::span<const std::byte>(heap.get(), size) : std::span<const std::byte>(plain));
        CHECK(end.receive(size) == Bytes(size, static_cast<std::byte>(size % 251 + 1 - end.peer())));
        end.finish(sending);
      }
    }
  };
  run_processes(body, body);
}

TEST(shm_peer_that_is_killed_is_noticed) {
  run_processes(
      [](End& end) {
        end.send(Bytes(4));
        Bytes in(100);
        const Ticket never = end->post_recv(1, kTag, in);
        end.expect_departure();
        CHECK(!end->poll(never));
        CHECK(end->cancel(never));
        // What is sent now goes nowhere, and is not in the way.
        const auto heap = end->peer_memory()->allocate(1 << 20);
        end->post_control(1, Bytes(4));
        CHECK(end->cancel(end->post_send(1, kTag, {heap.get(), 1 << 20})));
      },
      [](End& end) {
        end.receive(4);
        kill(getpid(), SIGKILL);
      },
      1);
}

TEST(shm_messages_of_a_peer_that_was_killed_still_arrive) {
  run_processes(
      [](End& end) {
        end->connect(1);
        end.hear();
        end.expect_departure();
        CHECK(end.receive(100000) == Bytes(100000, std::byte{5}));
      },
      [](End& end) {
        const Bytes out(100000, std::byte{5});
        end->post_send(0, kTag, out);
        end.say();
        kill(getpid(), SIGKILL);
      },
      1);
}

TEST(shm_collective_with_a_rank_that_was_killed_is_aborted_and_names_it) {
  const auto join = [](End& end) {
    Settings settings;
    settings.transports = {"shm"};
    settings.timeout_s = 60;
    const std::map<std::string, std::uintptr_t> handles{{"test_socket", end.socket()}};
    const auto engine = Engine::create({1 - end.peer(), 2, handles, nullptr}, settings, false);
    auto world = std::make_shared<Group>(0, engine->rank(), std::vector<int>{0, 1});
    return std::make_shared<Communicator>(engine, std::move(world), engine->segment_bytes());
  };
  run_processes(
      [&](End& end) {
        const auto communicator = join(end);
        auto values = contribution(0, 1000);
        wait(*communicator, communicator->submit(all_reduce(view_of(values))));
        const auto pending = communicator->submit(all_reduce(view_of(values)));
        CHECK_THROWS(wait(*communicator, pending), Aborted, "world rank 1 has left");
      },
      [&](End& end) {
        const auto communicator = join(end);
        auto values = contribution(1, 1000);
        wait(*communicator, communicator->submit(all_reduce(view_of(values))));
        CHECK(values == sum_of_contributions(2, 1000));
        kill(getpid(), SIGKILL);
      },
      1);
}

// A forked child holds neither the sockets by which peers notice our end, nor may it give our memory back.
TEST(shm_forked_child_does_not_hide_the_end_of_its_parent) {
  run_processes(
      [](End& end) {
        end.send(Bytes(4));
        end.expect_departure();
        end.hear();  // the child still lives
      },
      [](End& end) {
        end.receive(4);
        end->connect(0);
        auto heap = end->peer_memory()->allocate(2 << 20);
        std::memset(heap.get(), 7, 2 << 20);
        int status = -1;
        const pid_t brief = fork();
        if (brief == 0) {
          heap.reset();
          _exit(0);
        }
        CHECK_EQ(waitpid(brief, &status, 0), brief);
        CHECK(status == 0 && heap.get()[1 << 20] == std::byte{7});
        if (fork() == 0) {
          std::this_thread::sleep_for(std::chrono::milliseconds(300));
          end.say();
          _exit(0);
        }
        kill(getpid(), SIGKILL);
      },
      1);
}

TEST(shm_leaves_no_descriptor_and_no_mapping_behind) {
  const Body body = [](End& end) {
    end.send(Bytes(100));
    CHECK(end.receive(100).size() == 100);
    end.say();
    end.hear();
    CHECK(maps_a_heap());
    end.close();
    CHECK(!maps_a_heap());
    // The standard three, the sockets of this test (one of the other rank), and what the test program has
    // open.
    for (const std::string& file : open_files()) {
      std::array<char, 64> target{};
      const auto length = readlink(("/proc/self/fd/" + file).c_str(), target.data(), target.size() - 1);
      const std::string name(target.data(), length > 0 ? static_cast<std::size_t>(length) : 0);
      CHECK_EQ(name.find("memfd:"), std::string::npos);
      CHECK_EQ(name.find("eventpoll"), std::string::npos);
    }
  };
  run_processes(body, body);
  const std::size_t before = open_files().size();
  run_processes(body, body);
  CHECK_EQ(open_files().size(), before);
}

}  // namespace
}  // namespace pycomm
