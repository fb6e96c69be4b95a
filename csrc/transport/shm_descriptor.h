// A file descriptor that a forked child does not keep: a peer learns of our death by the end of a socket, and
// a copy in a child would hide it.
//
// Threads: any.
#pragma once

namespace pycomm {

class Descriptor {
 public:
  explicit Descriptor(int fd = -1);  // takes it over
  ~Descriptor() { reset(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void reset(int fd = -1);  // closes what it had
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace pycomm
