// What a transport remembers about each posted send and receive. A ticket is the index of an entry; entries
// keep their addresses, and spent ones are used again, so nothing is allocated per message once the table has
// grown.
//
// Threads: as the transport that owns it. An entry found through its address may be shared; the table may
// not.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "core/error.h"
#include "transport/transport.h"

namespace pycomm {

template <class Post>
class TicketTable {
 public:
  // The entry holds whatever its last user left in it.
  Ticket take() {
    if (spent_.empty()) {
      entries_.emplace_back();
      spent_.reserve(entries_.size());
      spent_.push_back(static_cast<Ticket>(entries_.size() - 1));
    }
    const Ticket ticket = spent_.back();
    spent_.pop_back();
    entries_[ticket].taken = true;
    return ticket;
  }

  Post& operator[](Ticket ticket) {
    if (ticket >= entries_.size() || !entries_[ticket].taken)
      throw Error(ErrorKind::internal, text("ticket ", ticket, " names no posted send or receive"));
    return entries_[ticket].post;
  }

  void give_back(Ticket ticket) {
    entries_[ticket].taken = false;
    spent_.push_back(ticket);
  }

  template <class Function>
  void for_each_taken(Function function) {
    for (auto& entry : entries_)
      if (entry.taken) function(entry.post);
  }

 private:
  struct Entry {
    Post post;
    bool taken = false;
  };
  std::deque<Entry> entries_;
  std::vector<Ticket> spent_;
};

}  // namespace pycomm
