// Memory that a rank lends to its peers for a mapped plan, so that ranks run the same plan whatever memory
// they pass. A buffer in shared memory is lent as it is. Of any other the chunks that peers touch (the plan's
// `exposed`) are lent piece by piece: a *loan* is a ring of cells in shared memory, each a segment long. The
// lender copies segments in; the borrower uses one as if it were the lender's memory and returns it; the
// lender copies out what the borrower wrote, and the cell takes the next segment. A ring is as small as a
// cache, so what the copies cost is time in the cache, not traffic to memory: a vector crosses the memory bus
// as often as if it were lent as it is.
//
// Where a chunk has more than one user the ring holds all its segments: they are copied in before the peers
// are met and out at the end.
//
// A loan's two counters order everything: what the lender copied in is seen by who acquires `granted`, what
// the borrower read and wrote is finished for who acquires `returned`. The first lap is ordered by the
// meeting.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/view.h"
#include "engine/arithmetic.h"
#include "engine/compiled_plan.h"
#include "engine/layout.h"
#include "transport/transport.h"

namespace pycomm {

// What both sides see of a loan; in the lender's shared memory, as are its cells.
struct Loan {
  std::int32_t chunk = 0;
  std::int32_t buffer = 0;  // kAnyBuffer where input and output are one
  bool counted = false;     // the borrower counts what it returns; else the last meeting says it all
  std::int64_t cells = 1;
  std::int64_t cell_bytes = 0;
  std::int64_t offset = 0;                            // of the first cell, from the first loan
  alignas(64) std::atomic<std::int64_t> granted{0};   // segments; by the lender
  alignas(64) std::atomic<std::int64_t> returned{0};  // segments; by the borrower

  static constexpr std::int32_t kAnyBuffer = -1;
};

// What a rank tells its peers when they first meet.
struct Lent {
  std::array<Region, 2> buffers{};  // input and output, where they are lent as they are
  Region loans;                     // `loan_count` of them in order of chunk, then the cells
  std::uint32_t loan_count = 0;
  std::uint32_t in_place = 0;
};

// The lender's side.
class Lender {
 public:
  // Copies the first lap in. `unread` says how to write what the caller's memory gets where it was not read.
  // Throws TransportError when there is no memory to borrow.
  Lender(PeerMemory& memory, const CompiledPlan& plan, const Layout& layout, const View& input,
         const View& output, std::int64_t segment_count, Results unread);

  Lent& lent() { return lent_; }
  // Where a chunk lies for our own steps, of one that lies at `data` in the caller's buffer.
  std::byte* place(Buffer buffer, int chunk, std::byte* data) const;
  // Takes back what has been returned and grants what follows, at most a segment of each loan. False: nothing
  // to do now.
  bool serve();
  // Takes back the rest; all peers have come to the last meeting.
  void finish();

 private:
  struct Owned {
    Loan* shared = nullptr;
    const ExposedChunk* exposed = nullptr;
    View view;  // the caller's
    std::byte* cells = nullptr;
    std::int64_t segments = 1;
    std::int64_t taken = 0;  // back
  };

  void add(const ExposedChunk& chunk, const View& view);
  void borrow_cells(PeerMemory& memory);
  View segment(const Owned& loan, std::int64_t number) const;
  std::byte* cell(const Owned& loan, std::int64_t number) const;
  void copy_in(const Owned& loan, std::int64_t number) const;
  void take_back(Owned& loan);

  const CompiledPlan& plan_;
  const std::int64_t segment_count_;
  const Results unread_;
  Lent lent_;
  std::shared_ptr<std::byte> memory_;  // loans and cells
  std::vector<Owned> loans_;           // in order of chunk
};

// The borrower's side: what one peer has lent.
class Borrower {
 public:
  Borrower() = default;
  Borrower(PeerMemory& memory, int world_peer, const Lent& lent);

  // Whether segment `number` of that chunk may be touched.
  bool granted(Buffer buffer, int chunk, std::int64_t number) const;
  // Where it lies; `offset_bytes` is where it lies in the peer's buffer.
  std::byte* place(Buffer buffer, int chunk, std::int64_t number, std::int64_t offset_bytes) const;
  bool lends_cells(Buffer buffer, int chunk) const { return find(buffer, chunk) != nullptr; }
  bool in_place() const { return in_place_; }
  // We shall touch segment `number` of that chunk, in whatever buffer, no more.
  void give_back(int chunk, std::int64_t number) const;

 private:
  Loan* first_of(int chunk) const;
  Loan* find(Buffer buffer, int chunk) const;

  std::array<std::byte*, 2> buffers_{};
  Loan* loans_ = nullptr;
  Loan* end_ = nullptr;
  bool in_place_ = false;
};

}  // namespace pycomm
