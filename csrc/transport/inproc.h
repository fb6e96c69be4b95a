// The wire between ranks that are threads of one process.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace pycomm {

// Shared by all ranks of one world, which outlives their transports; its address is the handle "inproc" of an
// Environment. A fabric serves one world once: what a rank leaves unread stays for whoever takes its place.
//
// Threads: any.
class InprocFabric {
 public:
  explicit InprocFabric(int size);
  ~InprocFabric();
  InprocFabric(const InprocFabric&) = delete;
  InprocFabric& operator=(const InprocFabric&) = delete;

  int size() const { return size_; }

  // The mailboxes of one transport (inproc.cc); messages of different transports never meet.
  class Lane;
  Lane& lane(const std::string& transport);

 private:
  const int size_;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Lane>> lanes_;
};

}  // namespace pycomm
