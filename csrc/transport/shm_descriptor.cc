#include "transport/shm_descriptor.h"

#include <pthread.h>
#include <unistd.h>

#include <mutex>
#include <set>

namespace pycomm {
namespace {

// All that are open in this process, where a child finds them. Never destroyed: threads may close at exit.
struct Open {
  std::mutex mutex;
  std::set<int> fds;
};

Open& open_descriptors() {
  static Open* const open = [] {
    auto* const made = new Open;
    pthread_atfork([] { open_descriptors().mutex.lock(); }, [] { open_descriptors().mutex.unlock(); },
                   [] {
                     for (int fd : open_descriptors().fds) ::close(fd);
                     // Emptied with the numbers still in their objects: those forget them in reset().
                     open_descriptors().fds.clear();
                     open_descriptors().mutex.unlock();
                   });
    return made;
  }();
  return *open;
}

}  // namespace

Descriptor::Descriptor(int fd) {
  reset(fd);
}

void Descriptor::reset(int fd) {
  Open& open = open_descriptors();
  const std::lock_guard lock(open.mutex);
  if (fd_ >= 0 && open.fds.erase(fd_) > 0) ::close(fd_);
  fd_ = fd;
  if (fd >= 0) open.fds.insert(fd);
}

}  // namespace pycomm
