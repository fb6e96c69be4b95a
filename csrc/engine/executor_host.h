// The executor over host memory. What plans leave out lives here: cutting chunks into segments, overlap of
// stages, codecs, scales, the header, and the words for what an operation waits for.
//
// A lossy codec's wires of finished chunks are kept for the length of the operation: the owner encodes once
// and decodes its own wire too, and receivers forward what they got. So all ranks end with the same bits
// whatever the codec (executor_codec.cc).
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "codec/codec.h"
#include "core/view.h"
#include "engine/arithmetic.h"
#include "engine/compiled_plan.h"
#include "engine/executor.h"
#include "engine/group.h"
#include "engine/layout.h"
#include "engine/loans.h"
#include "engine/staging.h"
#include "engine/wire.h"
#include "engine/work.h"
#include "transport/router.h"

namespace pycomm {

// A checked call, ready to run, any number of times.
struct Operation {
  Collective collective = Collective::barrier;
  View input;  // see plan.h for which chunks input and output hold
  View output;
  ReduceOp op = ReduceOp::sum;  // never avg: that is a sum with a scale or a divisor
  Order order = Order::any;     // see operand_of() and settle() for what a given one asks of lossy codecs
  const Codec* codec = nullptr;
  double contribution_scale = 1.0;  // applied to every rank's contribution before it is summed
  Finish finish;                    // applied to complete sums
  std::shared_ptr<const CompiledPlan> plan;
  Layout layout;
  std::int64_t segment_count = 1;  // elements; equal on all ranks
  std::shared_ptr<const Group> group;
};

class HostExecutor final : public Executor {
 public:
  // The header is that of the call; number() completes it.
  HostExecutor(std::shared_ptr<const Operation> operation, const Header& header, Router& router,
               Staging& staging);
  void number(std::uint32_t sequence, std::uint32_t history, Tag tag) override;

  void begin() override;
  void end() override;
  bool advance() override;
  bool finished() const override { return unfinished_ == 0; }
  std::int64_t bytes_sent() const override { return bytes_sent_; }
  std::string waiting_for() const override;
  bool waits_for(int world_peer) const override;
  bool withdraw() override;

 private:
  struct Progress {
    std::int64_t segments = 1;
    std::int64_t done = 0;
    int parts_left = 0;  // of a meet: messages to send and to receive
  };
  // One message on its way. step < 0: a header by itself.
  struct Flight {
    Ticket ticket = 0;
    int step = -1;
    std::int64_t segment = 0;
    bool landed = false;
    bool opening = false;       // begins with the header
    std::byte* wire = nullptr;  // the payload
    std::size_t bytes = 0;      // of the payload
    Staging::Block block;
  };
  struct Lane {
    const Channel* channel = nullptr;
    Transport* transport = nullptr;
    int world_peer = 0;
    Header header;
    std::size_t window = 1;
    std::size_t next = 0;           // position in channel->steps
    std::int64_t next_segment = 0;  // of that step
    bool opened = false;            // outgoing: header sent; incoming: header received
    std::vector<Flight> flights{};  // in order; at most a window of them
  };

  bool advance_outgoing(Lane& lane);
  bool advance_incoming(Lane& lane);
  bool advance_local();

  bool retire_sent(Lane& lane);
  bool post_send(Lane& lane);
  bool post_recv(Lane& lane);
  void post_opening_recv(Lane& lane);
  void land(Lane& lane, Flight& flight, std::size_t bytes);
  bool apply(const Lane& lane, const Flight& flight);
  void apply_payload(const Flight& flight);
  void run_local(int step, std::int64_t segment);

  // The payload of a send: where it lies, encoded into `block` when it must be.
  std::byte* payload_of(int step, std::int64_t segment, Staging::Block& block);
  std::int64_t payload_bytes(int step, std::int64_t segment) const;
  bool exposed() const;
  Header header_for(const Channel& channel, Header header) const;
  void step_on(Lane& lane);
  void complete(int step);
  bool ready(int step, std::int64_t segment) const;
  bool granted(const Step& step, std::int64_t segment) const;

  View chunk_view(Buffer buffer, int chunk) const;
  View segment_view(Buffer buffer, int chunk, std::int64_t segment) const;
  std::byte* peer_segment(int peer, Buffer buffer, int chunk, std::int64_t segment) const;
  void give_back(int step, std::int64_t segment) const;
  Results results_of(int step) const;                    // in memory of ours
  Results results_at(int peer, const Step& step) const;  // in a peer's
  double contribution_scale(Buffer src) const;
  Finish finish_of(const Step& step) const { return step.final ? operation_.finish : Finish{}; }

  // What a buffer gives to a step that adds or copies; `own` holds it where it is not there as it must be.
  Operand operand_of(Buffer source, int chunk, std::int64_t segment, Staging::Block& own);
  // After a step has written its dst.
  void settle(const Step& step, std::int64_t segment);

  // Wires of finished chunks.
  std::byte* kept_wire(int chunk, std::int64_t segment) const;
  std::size_t kept_index(int chunk, std::int64_t segment) const {
    return chunk * segments_per_chunk_ + segment;
  }
  bool lossy() const { return !operation_.codec->lossless; }

  const std::shared_ptr<const Operation> shared_operation_;
  const Operation& operation_;
  Tag tag_;
  const std::vector<int>& world_ranks_;
  const CompiledPlan& plan_;
  Router& router_;
  Staging& staging_;
  const Layout& layout_;
  std::int64_t segments_per_chunk_ = 1;
  std::int64_t wire_segment_bytes_ = 0;
  std::vector<Progress> progress_;
  std::vector<Lane> lanes_;     // those in before those out
  std::size_t first_out_ = 0;   // of lanes_
  std::size_t local_next_ = 0;  // first local step that is not finished
  std::size_t unfinished_ = 0;
  std::int64_t bytes_sent_ = 0;
  std::vector<Operand> operands_;  // of the step at hand
  Staging::Block scratch_;
  Staging::Block kept_;
  std::vector<std::uint8_t> kept_valid_;
  PeerMemory* peer_memory_ = nullptr;  // of the ranks that a mapped plan meets
  // Of a mapped plan: what peers may touch here, and, by peer, what we may touch there.
  std::optional<Lender> lender_;
  std::vector<Borrower> borrowers_;
  bool told_ =
      false;  // a meet has been posted: peers may learn where our memory lies, whatever cancel() says
  bool large_ = false;  // the buffers of all ranks do not fit into the cache that they share
};

}  // namespace pycomm
