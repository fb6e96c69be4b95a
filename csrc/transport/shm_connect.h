// How ranks of one node find each other: each listens on a socket in the abstract namespace (which ends with
// its process and spans one network namespace), under a name that only its job knows. To talk to a peer, a
// rank connects to that name and hands over its heap with the place of its line to this peer. The peer need
// not be there to take it: the kernel keeps both, so nobody waits. Each direction has a socket of its own;
// they stay open, silent, and end with either process.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "transport/shm_descriptor.h"
#include "transport/shm_heap.h"

namespace pycomm::shm {

// A peer's line to us.
struct Arrival {
  int peer = -1;
  std::shared_ptr<Mapping> heap;
  std::uint64_t line = 0;  // offset
};

class Neighbours {
 public:
  // Throws TransportError where the system has no such sockets.
  Neighbours(int rank, int size, Heap& heap);
  ~Neighbours();

  const std::string& name() const { return name_; }
  // Whether a rank of our user listens under that name, where we can reach it. Leaves nothing open.
  bool reaches(int peer, const std::string& name);

  // Hands our heap to a peer. One that has gone is found out by depart().
  void offer(int peer, std::uint64_t line);

  // What has come since: looks only now and then, however often it is called.
  std::optional<Arrival> arrive();
  // A peer that has gone, once for each.
  std::optional<int> depart();

 private:
  struct Hello;
  struct Caller {
    Descriptor socket;
    int peer = -1;  // once it has said who it is
  };

  void look();
  void accept_callers();
  bool hear(Caller& caller);
  bool call(int peer);
  void watch(int fd, std::uint64_t id);
  void lose(int peer);

  const int rank_;
  const std::string name_;
  Descriptor file_;  // the heap's
  Descriptor listener_;
  Descriptor events_;
  struct Peer {
    std::string name;
    std::uint64_t line = 0;
    Descriptor socket;  // ours to it
    bool lost = false;
  };
  std::deque<Peer> peers_;
  std::map<std::uint64_t, Caller> callers_;  // by id, above those of peers
  std::uint64_t next_caller_;
  std::deque<int> uncalled_;  // peers whose queue of callers was full
  std::deque<Arrival> arrivals_;
  std::deque<int> departures_;
  std::chrono::steady_clock::time_point next_look_{};
};

}  // namespace pycomm::shm
