// A plan is what one rank does in a collective: stages of steps on numbered chunks. It knows no pointer, no
// transport and no element type, so one plan serves all of them, and plan/verify.h can prove it.
//
// Words
//   chunk    one numbered part of the vector. Chunk numbers mean the same elements on all ranks and in all
//            buffers. A plan cuts the vector in `chunks` parts. Where the call has parts (has_parts in
//            spec.h) these are the chunks: chunk r is what rank r gives or gets, N of them; for all_to_all
//            chunk i*N + j is what rank i gives to rank j, N*N of them. Elsewhere a plan cuts as it likes
//            (core/partition.h). Chunks may differ in size, and be empty.
//   buffer   input and output are the caller's; they may be the same memory (but for all_to_all), and a plan
//            must be right either way. A scratch buffer is a slot that holds one chunk at a time, of any
//            number. Which chunks a rank's input and output hold:
//                             input                      output
//              all_reduce     all                        all
//              reduce_scatter all                        chunk `rank`
//              all_gather     chunk `rank`               all
//              broadcast      (plans name it output)     all
//              reduce         all                        all at the root, none elsewhere
//              gather         chunk `rank`               all at the root, none elsewhere
//              scatter        all at the root            chunk `rank`
//              all_to_all     rank*N ... rank*N + N-1    rank, N + rank, 2N + rank ...
//            Only all_reduce, reduce_scatter (its own chunk), broadcast and recv may write what the caller
//            passed in, and only where it is the output.
//   segment  what travels in one message. The executor cuts chunks into segments; plans never see them.
//
// Order
//   Steps of one stage are concurrent: none may write what another reads or writes, except recv_reduces into
//   one place, which apply in the listed order. Between stages the executor makes a step wait, segment by
//   segment, for earlier steps that touch the same (buffer, chunk); there is no barrier between stages.
//   Scratch slots conflict whatever the chunk. The messages from one rank to another travel in the order
//   (stage, position in stage), and are received in that order.
//
// Numbers
//   Reading the *input* in a reducing collective is taking this rank's contribution: the executor scales
//   there when contributions are to be scaled before they are summed. So a plan reads each element of its own
//   input into the sum once per destination that it reaches, never twice for one.
//   `pairwise` marks a reduce or reduce_from that adds halves of its operands, a power of two of them, each
//   summed so: ((a + b) + (c + d)); others add from left to right. Either rounds 16-bit elements once.
//   `final` marks the step after which its dst holds the complete reduction: results are scaled there.
//   `publish` marks sends of a value that the receivers keep as it is: with a lossy codec the sender replaces
//   its own chunk by what the receivers decode, so that all ranks end with the same bits. For the order of
//   steps such a send writes its src; several of one stage publish the same value.
#pragma once

#include <string>
#include <vector>

#include "core/registry.h"
#include "plan/spec.h"

namespace pycomm {

enum class Op : std::uint8_t {
  send,         // src -> peer
  recv,         // peer -> dst
  recv_reduce,  // dst = src (+) what peer sends; src may equal dst
  copy,         // src -> dst
  reduce,       // dst = sources[0] (+) sources[1] (+) ...
  // For peers whose memory is addressable, those of the own node (Spec::node_of):
  meet,         // wait until every peer has come here too; the first one exchanges where the buffers are
  reduce_from,  // dst = reduction, in order of rank, of `src` of all `peers` (own rank included)
  store_to,     // src -> dst of each of `peers`
};
inline constexpr std::array<std::string_view, 8> kOpNames = {"send",   "recv", "recv_reduce", "copy",
                                                             "reduce", "meet", "reduce_from", "store_to"};
constexpr std::string_view name_of(Op op) {
  return kOpNames[static_cast<int>(op)];
}

struct Buffer {
  int id = 0;  // 0 input, 1 output, 2 + i scratch slot i
  bool operator==(const Buffer&) const = default;
};
inline constexpr Buffer kInput{0};
inline constexpr Buffer kOutput{1};
constexpr Buffer scratch(int slot) {
  return Buffer{2 + slot};
}
constexpr bool is_scratch(Buffer buffer) {
  return buffer.id >= 2;
}

struct Step {
  Op op = Op::copy;
  std::vector<int> peers = {};  // one for send, recv, recv_reduce; several for meet, reduce_from, store_to
  int chunk = 0;
  Buffer src = kInput;
  Buffer dst = kOutput;
  std::vector<Buffer> sources = {};  // of reduce
  bool pairwise = false;
  bool final = false;
  bool publish = false;
  bool operator==(const Step&) const = default;
};

struct Stage {
  std::vector<Step> steps;
  bool operator==(const Stage&) const = default;
};

struct Plan {
  int chunks = 1;
  std::vector<Stage> stages = {};

  bool operator==(const Plan&) const = default;
  Stage& add_stage() { return stages.emplace_back(); }
};

// Short forms, so that an algorithm reads like its description.
Step send(int peer, int chunk, Buffer src);
Step recv(int peer, int chunk, Buffer dst);
Step recv_reduce(int peer, int chunk, Buffer src, Buffer dst);
Step copy(int chunk, Buffer src, Buffer dst);
Step reduce(int chunk, Buffer dst, std::vector<Buffer> sources);
Step meet(std::vector<int> peers);
Step reduce_from(std::vector<int> peers, int chunk, Buffer src, Buffer dst);
Step store_to(std::vector<int> peers, int chunk, Buffer src, Buffer dst);
Step added_in(Order order, Step step);  // a reduce or reduce_from whose operands are in order of rank
Step as_final(Step step);
Step published(Step step);

// Whether rank `spec.rank` has that chunk of that buffer, as the table above says. Both ends of a send have
// both buffers.
bool has_chunk(const Spec& spec, Buffer buffer, int chunk);

// Nodes under any numbers, numbered as Spec has them; empty where no two ranks share one.
std::vector<int> numbered(const std::vector<int>& nodes);

// The same of some of the ranks, whose nodes are node_of[rank]; empty where node_of is.
std::vector<int> nodes_among(const std::vector<int>& node_of, const std::vector<int>& ranks);

// In how many chunks the plans of a collective that has parts cut the vector.
int chunks_of_parts(Collective collective, int size);

// An algorithm serves one collective; its name is unique within it, and `name` is "collective:name".
struct Algorithm {
  std::string name;  // "all_reduce:ring"
  std::string summary;
  Plan (*plan)(const Spec& spec) = nullptr;
  bool (*supports)(int size) = nullptr;  // null: every size
  // Elements that the busiest rank sends, as a fraction of the vector (the theory, which verify holds the
  // plan to); 0 for a barrier. With mapped steps, the fraction stored to peers plus the fraction read from
  // them. The vector is all chunks: those of all pairs of ranks for all_to_all.
  double (*volume)(int size) = nullptr;
  // Of an algorithm that follows Spec::node_of (null: others): the fraction that the busiest node sends to
  // others. Its `volume` is that of nodes of one rank.
  double (*volume_of_node)(const Spec& spec) = nullptr;
  bool lossy_codecs = true;  // all ranks end with equal bits under a lossy codec
  // The orders in which it adds when the spec asks for one, besides any. With 16-bit elements or a lossy
  // codec it does so only if it also adds a chunk's contributions in a single step: partial sums would be
  // rounded.
  std::vector<Order> orders = {};
  bool rounds_once = false;
  // Serves parts of sizes that the caller chose. In all_to_all a rank knows those of its own input and output
  // only; elsewhere every rank knows all.
  bool uneven = true;
  bool mapped = false;  // needs peers whose memory is addressable
};

// `rounds`: elements of 16 bits or a lossy codec.
bool keeps(const Algorithm& algorithm, Order order, bool rounds);

// The algorithm of that short name ("ring"), or InvalidArgument listing those that serve the collective.
const Algorithm& algorithm_named(Collective collective, std::string_view short_name);
std::vector<const Algorithm*> algorithms_for(Collective collective);
std::string short_name(const Algorithm& algorithm);
Collective collective_of(const Algorithm& algorithm);

}  // namespace pycomm
