// Ranks as threads of one process: what they share, and the handles by which their engines find it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "bootstrap/inproc.h"
#include "transport/inproc.h"

namespace pycomm {

class ThreadWorld {
 public:
  explicit ThreadWorld(int size) : fabric_(size), board_(size) {}

  std::map<std::string, std::uintptr_t> handles() {
    return {{"inproc", reinterpret_cast<std::uintptr_t>(&fabric_)},
            {"inproc_board", reinterpret_cast<std::uintptr_t>(&board_)}};
  }

  // Lets no rank wait for one that failed before it was connected.
  void abort(const std::string& why) { board_.abort(why); }

 private:
  InprocFabric fabric_;
  InprocBoard board_;
};

}  // namespace pycomm
