#include "plan/cost.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "core/error.h"

namespace pycomm {

// A step as prices see it. A meet is a message to each peer and one from each.
struct Move {
  enum class Kind : std::uint8_t { send, recv, recv_reduce, copy, reduce, read, store } kind;
  bool meets = false;  // carries no chunk, and what follows waits for all of it
  bool opens = false;  // the first message to or from that peer
  std::int32_t stage = 0;
  std::int32_t peer = 0;      // of a message
  std::int32_t message = 0;   // its number, the same at both ends
  std::int32_t operands = 1;  // of what is local
};

struct Script {
  explicit Script(Links of) : links(std::move(of)) {}

  Links links;
  std::vector<std::vector<Move>> moves;  // by rank
  std::int32_t messages = 0;
  int parts = 1;          // of the vector, each a chunk
  bool sums_once = true;  // see Costing::rounds_once()
  bool sends_once = true;
};

namespace {

using Kind = Move::Kind;

constexpr double kRegionsBytes = 32;   // what ranks tell each other when they meet
constexpr double kInlineBytes = 4056;  // a longer first message follows its header ...
constexpr double kHeaderMessages = 2;  // ... and is received late, which costs about another message

class ScriptWriter {
 public:
  explicit ScriptWriter(Script& script) : script_(script) {}

  void add(int rank, const Plan& plan) {
    rank_ = rank;
    holds_.clear();
    script_.moves.emplace_back();
    for (stage_ = 0; stage_ < static_cast<int>(plan.stages.size()); ++stage_) {
      const std::vector<Step>& steps = plan.stages[stage_].steps;
      // What goes out waits for nothing that comes in during the same stage.
      for (const Step& step : steps) {
        if (step.op != Op::send && step.op != Op::meet) continue;
        for (const int peer : step.peers) message(Kind::send, peer, step.op == Op::meet);
        if (step.op == Op::send && at(step.src, step.chunk) == Holds::partial_sum) script_.sends_once = false;
      }
      for (const Step& step : steps) add_incoming_or_local(step);
    }
  }

 private:
  void add_incoming_or_local(const Step& step) {
    follow(step);
    switch (step.op) {
      case Op::send:
        break;
      case Op::recv:
        return message(Kind::recv, step.peers[0], false);
      case Op::recv_reduce:
        return message(Kind::recv_reduce, step.peers[0], false);
      case Op::meet:
        for (const int peer : step.peers) message(Kind::recv, peer, true);
        break;
      case Op::copy:
        return local(Kind::copy, 1);
      case Op::reduce:
        // From slots that have left the cache; of a recv_reduce one operand has just come into it.
        return local(Kind::reduce, step.sources.size());
      case Op::reduce_from:
        return local(Kind::read, step.peers.size());
      case Op::store_to:
        return local(Kind::store, step.peers.size());
    }
  }

  // What places hold on this rank; a partial sum: of something received among others.
  enum class Holds { own, received, partial_sum };
  Holds& at(Buffer buffer, int chunk) { return holds_[{buffer.id, is_scratch(buffer) ? 0 : chunk}]; }

  void follow(const Step& step) {
    if (step.op == Op::recv) at(step.dst, step.chunk) = Holds::received;
    if (step.op == Op::copy) at(step.dst, step.chunk) = at(step.src, step.chunk);
    if (step.op != Op::recv_reduce && step.op != Op::reduce && step.op != Op::reduce_from) return;
    bool received = step.op == Op::recv_reduce;
    for (const Buffer source : step.sources) received |= at(source, step.chunk) != Holds::own;
    at(step.dst, step.chunk) = received && !step.final ? Holds::partial_sum : Holds::own;
    script_.sums_once &= step.final || step.op == Op::reduce_from;  // a node's sum, then that of the nodes
  }

  void message(Kind kind, int peer, bool meets) {
    const bool outgoing = kind == Kind::send;
    const auto way = outgoing ? std::pair(rank_, peer) : std::pair(peer, rank_);
    std::vector<std::int32_t>& numbers = numbers_[way];
    std::size_t& next = (outgoing ? departed_ : arrived_)[way];
    if (next == numbers.size()) numbers.push_back(script_.messages++);
    script_.moves.back().push_back({kind, meets, next == 0, stage_, peer, numbers[next], 1});
    ++next;
  }

  void local(Kind kind, std::size_t operands) {
    script_.moves.back().push_back({kind, false, false, stage_, 0, 0, static_cast<std::int32_t>(operands)});
  }

  Script& script_;
  int rank_ = 0;
  std::int32_t stage_ = 0;
  // Messages from one rank to another are received in the order in which they are sent.
  std::map<std::pair<int, int>, std::vector<std::int32_t>> numbers_;
  std::map<std::pair<int, int>, std::size_t> departed_, arrived_;
  std::map<std::pair<int, int>, Holds> holds_;  // by buffer and chunk; scratch slots hold one of any number
};

// When something begins to be there (its first segment), and when all of it is.
struct Span {
  double first = 0, last = 0;
  void join(const Span& other) {
    first = std::max(first, other.first);
    last = std::max(last, other.last);
  }
};

class Play {
 public:
  Play(const Script& script, const Load& load, const Prices& prices)
      : script_(script),
        load_(load),
        chunk_bytes_(load.bytes / script.parts),
        ranks_(script.moves.size()),
        arrivals_(script.messages, Span{-1, -1}) {
    const double touched = load.bytes * script.links.ranks_per_machine();
    const double beyond = touched > prices.cache_bytes ? 1 - prices.cache_bytes / touched : 0;
    const double bytes = load.crowd * (1 + (prices.far_factor - 1) * beyond);
    const double reduced = bytes * (load.half ? prices.half_factor : 1);
    copied_ = prices.byte_copied_s * bytes;
    stored_ = prices.byte_stored_s * bytes;
    reduced_ = prices.byte_reduced_s * reduced;
    read_ = prices.byte_read_s * reduced;
    coded_ = load.coded ? prices.byte_coded_s * bytes : 0;
    call_ = prices.call_s * load.crowd;
    for (const std::string& kind : script.links.kinds()) {
      Way way{prices.link(kind), is_network(kind)};
      way.price.message_s *= load.crowd;
      if (!way.network) way.price.byte_s *= bytes;
      if (!way.network && load.crowd > 1) way.price.latency_s += prices.switch_s;
      ways_.push_back(way);
    }
  }

  double seconds() {
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t rank = 0; rank < ranks_.size(); ++rank) moved |= advance(static_cast<int>(rank));
    }
    double end = 0;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      PYCOMM_DCHECK(ranks_[rank].next == script_.moves[rank].size());
      end = std::max({end, ranks_[rank].busy, ranks_[rank].ready.last, ranks_[rank].done.last});
    }
    return end + call_;
  }

 private:
  struct Rank {
    std::size_t next = 0;    // of its moves
    std::int32_t stage = 0;  // that it is in
    Span ready;              // what the stage starts from
    Span done;               // what it leaves
    double busy = 0;         // its processor, until then
    double out = 0, in = 0;  // its ways into the network and from there
  };
  struct Way {
    LinkPrice price;
    bool network = false;
  };

  // As far as messages have come.
  bool advance(int number) {
    Rank& rank = ranks_[number];
    const std::vector<Move>& moves = script_.moves[number];
    const std::size_t before = rank.next;
    for (; rank.next < moves.size(); ++rank.next) {
      const Move& move = moves[rank.next];
      if (move.stage != rank.stage) {
        rank.ready.join(rank.done);
        rank.stage = move.stage;
      }
      if (move.kind == Kind::send) {
        send(number, rank, move);
      } else if (move.kind != Kind::recv && move.kind != Kind::recv_reduce) {
        compute(rank, move);
      } else if (arrivals_[move.message].first < 0) {
        break;
      } else {
        receive(number, rank, move);
      }
    }
    return rank.next > before;
  }

  // The processor works through a chunk (`whole`) as it comes, from the first segment on, and is done when it
  // has done the last one (`part`).
  static Span work(Rank& rank, const Span& from, double whole, double part) {
    const double begin = std::max(rank.busy, from.first);
    rank.busy = begin + whole;
    return {begin + part, std::max(rank.busy, from.last + part)};
  }

  double bytes_of(const Move& move) const {
    return move.meets ? kRegionsBytes : chunk_bytes_ * load_.wire_ratio;
  }
  double messages_of(const Move& move, double bytes) const {
    const double header = move.opens && bytes > kInlineBytes ? kHeaderMessages : 0;
    return std::max(1.0, std::ceil(bytes / load_.segment_bytes)) + header;
  }

  void send(int number, Rank& rank, const Move& move) {
    const Way& way = ways_[script_.links.index(number, move.peer)];
    const double bytes = bytes_of(move), part = std::min(bytes, load_.segment_bytes);
    const double coded = move.meets ? 0 : coded_ / load_.wire_ratio;
    Span from = rank.ready;
    if (move.meets) from.first = from.last;
    Span sent = work(rank, from, messages_of(move, bytes) * way.price.message_s + bytes * coded,
                     way.price.message_s + part * coded);
    if (way.network) {
      const double begin = std::max(rank.out, sent.first), byte_s = way.price.byte_s;
      rank.out = begin + bytes * byte_s;
      sent = {begin + part * byte_s, std::max(rank.out, sent.last + part * byte_s)};
    }
    arrivals_[move.message] = {sent.first + way.price.latency_s, sent.last + way.price.latency_s};
  }

  void receive(int number, Rank& rank, const Move& move) {
    const Way& way = ways_[script_.links.index(number, move.peer)];
    const double bytes = bytes_of(move), part = std::min(bytes, load_.segment_bytes);
    Span message = arrivals_[move.message];
    double byte_s = move.meets ? 0 : coded_ / load_.wire_ratio;
    if (move.kind == Kind::recv_reduce) byte_s += reduced_ / load_.wire_ratio;
    if (way.network) {
      rank.in = std::max(rank.in + bytes * way.price.byte_s, message.last);
      message.last = rank.in;
    } else {
      byte_s += way.price.byte_s;
    }
    message.join(rank.ready);
    Span got = work(rank, message, messages_of(move, bytes) * way.price.message_s + bytes * byte_s,
                    way.price.message_s + part * byte_s);
    if (move.meets) got.first = got.last;
    rank.done.join(got);
  }

  void compute(Rank& rank, const Move& move) {
    const double byte_s = move.kind == Kind::copy     ? copied_
                          : move.kind == Kind::reduce ? reduced_ * move.operands
                          : move.kind == Kind::read   ? read_ * move.operands
                                                      : stored_ * move.operands;
    const double part = std::min(chunk_bytes_, load_.segment_bytes);
    rank.done.join(work(rank, rank.ready, chunk_bytes_ * byte_s, part * byte_s));
  }

  const Script& script_;
  const Load& load_;
  const double chunk_bytes_;
  double copied_, stored_, reduced_, read_, coded_, call_;  // seconds, per byte and of the call
  std::vector<Way> ways_;                                   // by kind of link
  std::vector<Rank> ranks_;
  std::vector<Span> arrivals_;  // by message; -1 before it is sent
};

// Whole machines from the first on where two fit, else ranks evenly spaced.
std::vector<int> some_of(const Links& links, int count) {
  std::vector<int> ranks(count);
  const bool first_ones = links.kinds().size() == 1 || 2 * links.ranks_per_machine() <= count;
  for (int i = 0; i < count; ++i)
    ranks[i] = first_ones ? i : static_cast<int>(std::int64_t{i} * links.size() / count);
  return ranks;
}

std::shared_ptr<const Script> script_of(const Algorithm& algorithm, const Links& links,
                                        const std::vector<int>& node_of, Order order) {
  const auto script = std::make_shared<Script>(links);
  const Collective collective = collective_of(algorithm);
  const int size = links.size();
  ScriptWriter writer(*script);
  for (int rank = 0; rank < size; ++rank) {
    const Plan plan = algorithm.plan({collective, rank, size, 0, order, node_of});
    script->parts = collective == Collective::all_to_all ? size : plan.chunks;
    writer.add(rank, plan);
  }
  return script;
}

}  // namespace

Costing::Costing(const Algorithm& algorithm, const Links& links, const std::vector<int>& node_of,
                 Order order) {
  if (links.size() <= kPlayedRanks) {
    scripts_.push_back(script_of(algorithm, links, node_of, order));
  } else {
    for (const int count : {kPlayedRanks / 4, kPlayedRanks / 2, kPlayedRanks}) {
      const std::vector<int> ranks = some_of(links, count);
      scripts_.push_back(script_of(algorithm, links.among(ranks), nodes_among(node_of, ranks), order));
    }
    doublings_ = std::log2(static_cast<double>(links.size()) / kPlayedRanks);
  }
  for (const auto& script : scripts_) {
    sums_once_ = sums_once_ && script->sums_once;
    sends_once_ = sends_once_ && script->sends_once;
  }
}

double Costing::seconds(const Load& load, const Prices& prices) const {
  std::vector<double> played;
  for (const auto& script : scripts_) played.push_back(Play(*script, load, prices).seconds());
  if (scripts_.size() == 1) return played[0];
  // Each doubling changes the price by a factor of the doubling before: a half, of bytes that fall with N, to
  // two, of rounds that grow with it.
  const double earlier = played[1] - played[0], latest = played[2] - played[1];
  const double factor = earlier != 0 ? std::clamp(latest / earlier, 0.5, 2.0) : 1.0;
  const double steps = factor == 1 ? doublings_ : factor * (std::pow(factor, doublings_) - 1) / (factor - 1);
  return std::max(played[2] + latest * steps, played[2] / 2);
}

}  // namespace pycomm
