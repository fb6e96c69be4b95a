#include "plan/schedule.h"

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "plan/text.h"

namespace pycomm {

std::vector<Access> accesses(const Step& step, const Places& places) {
  const Access reads{places.of(step.src, step.chunk), false}, writes{places.of(step.dst, step.chunk), true};
  std::vector<Access> out;
  switch (step.op) {
    case Op::send:  // one that publishes replaces what it sends
      return {{reads.place, step.publish}};
    case Op::recv:
      return {writes};
    case Op::recv_reduce:
    case Op::copy:
    case Op::reduce_from:  // the own rank is one of its peers
      return {reads, writes};
    case Op::reduce:
      for (Buffer source : step.sources) out.push_back({places.of(source, step.chunk), false});
      out.push_back(writes);
      return out;
    case Op::store_to:
      return {reads};
    case Op::meet:
      return {};
  }
  return out;
}

std::string where(const Node& node) {
  return text("rank ", node.rank, ", stage ", node.stage, ", '", to_text(*node.step), "'");
}

namespace {

// The uses of one place that a further use may have to wait for: those of the current stage, and those before
// it back to the last stage that wrote (whoever waits for that write has waited for all before).
struct Uses {
  struct Use {
    int node;
    bool write;
  };
  int stage = -1;
  std::vector<Use> before, now;

  void enter(int next_stage) {
    if (next_stage == stage) return;
    stage = next_stage;
    if (std::any_of(now.begin(), now.end(), [](Use use) { return use.write; })) before.clear();
    before.insert(before.end(), now.begin(), now.end());
    now.clear();
  }
};

class Builder {
 public:
  Builder(const std::vector<Plan>& plans, bool in_place) : plans_(plans), in_place_(in_place) {}

  Schedule build() {
    for (std::size_t rank = 0; rank < plans_.size(); ++rank) add_rank(static_cast<int>(rank));
    for (auto& [ranks, channel] : channels_) join_messages(ranks.first, ranks.second, channel);
    join_meets();
    order_events();
    return std::move(out_);
  }

 private:
  struct Channel {
    std::vector<int> sends, recvs;
  };
  struct Meeting {
    std::vector<int> group;  // in order of rank
    std::vector<int> nodes;  // of one rank, one per meeting
  };

  void add_rank(int rank) {
    const Plan& plan = plans_[rank];
    const int first = size();
    std::unordered_map<int, Uses> uses;
    for (std::size_t s = 0; s < plan.stages.size(); ++s) {
      for (const Step& step : plan.stages[s].steps) {
        const auto& met = meetings_[rank].nodes;
        out_.nodes.push_back({rank, static_cast<int>(s), static_cast<int>(met.size()), &step, {}});
        const int node = size() - 1;
        if (!met.empty()) out_.nodes[node].after.push_back(met.back());
        if (step.op == Op::meet) {
          add_meet(node, met.empty() ? first : met.back() + 1, plan.stages[s]);
        } else {
          wait_for_conflicts(node, uses);
          add_to_channel(node);
        }
      }
    }
  }

  void wait_for_conflicts(int node, std::unordered_map<int, Uses>& uses) {
    Node& self = out_.nodes[node];
    const Places places{plans_[self.rank].chunks, in_place_};
    for (const Access& access : accesses(*self.step, places)) {
      Uses& place = uses[access.place];
      place.enter(self.stage);
      for (const Uses::Use& use : place.before)
        if (use.write || access.write) self.after.push_back(use.node);
      for (const Uses::Use& use : place.now)
        if (use.node != node && (use.write || access.write)) share_stage(use.node, node);
      place.now.push_back({node, access.write});
    }
  }

  // Two steps of one stage touch one place: recv_reduces into it apply in the listed order, and publishing
  // the same value twice changes it once.
  void share_stage(int earlier, int later) {
    const Step &a = *out_.nodes[earlier].step, &b = *out_.nodes[later].step;
    if (a.op == Op::recv_reduce && b.op == Op::recv_reduce && a.dst == b.dst) {
      out_.nodes[later].after.push_back(earlier);
    } else if (!(a.publish && b.publish)) {
      throw Flaw(text(where(out_.nodes[later]), " conflicts with '", to_text(a), "' of the same stage"));
    }
  }

  void add_to_channel(int node) {
    const Node& self = out_.nodes[node];
    if (self.step->op == Op::send) {
      channels_[{self.rank, self.step->peers[0]}].sends.push_back(node);
    } else if (self.step->op == Op::recv || self.step->op == Op::recv_reduce) {
      channels_[{self.step->peers[0], self.rank}].recvs.push_back(node);
    } else {
      out_.events.push_back({node});
    }
  }

  void join_messages(int from, int to, const Channel& channel) {
    for (std::size_t i = 0; i < std::max(channel.sends.size(), channel.recvs.size()); ++i) {
      if (i >= channel.sends.size())
        throw Flaw(text(where(out_.nodes[channel.recvs[i]]), " has no send: rank ", from, " sends ",
                        channel.sends.size(), " messages to rank ", to, ", which receives ",
                        channel.recvs.size()));
      if (i >= channel.recvs.size())
        throw Flaw(text(where(out_.nodes[channel.sends[i]]), " has no receive: rank ", to, " receives ",
                        channel.recvs.size(), " messages from rank ", from, ", which sends ",
                        channel.sends.size()));
      Node& send = out_.nodes[channel.sends[i]];
      const Node& recv = out_.nodes[channel.recvs[i]];
      if (send.step->chunk != recv.step->chunk)
        throw Flaw(text(where(recv), " is met by another chunk: ", where(send)));
      if (i > 0) send.after.push_back(channel.sends[i - 1]);
      out_.events.push_back({channel.sends[i], channel.recvs[i]});
    }
  }

  void add_meet(int node, int since, const Stage& stage) {
    Node& self = out_.nodes[node];
    if (stage.steps.size() > 1) throw Flaw(text(where(self), " shares its stage with other steps"));
    for (int earlier = since; earlier < node; ++earlier) self.after.push_back(earlier);
    std::vector<int> group = self.step->peers;
    group.push_back(self.rank);
    std::sort(group.begin(), group.end());
    Meeting& meeting = meetings_[self.rank];
    if (meeting.nodes.empty()) meeting.group = group;
    if (meeting.group != group) throw Flaw(text(where(self), " is with others than the first meet"));
    meeting.nodes.push_back(node);
  }

  void join_meets() {
    for (auto& [rank, meeting] : meetings_) {
      if (meeting.nodes.empty()) continue;
      for (int member : meeting.group) {
        const Meeting& other = meetings_.at(member);
        if (other.nodes.size() != meeting.nodes.size())
          throw Flaw(text(where(out_.nodes[meeting.nodes[0]]), ": rank ", rank, " meets ",
                          meeting.nodes.size(), " times, rank ", member, " ", other.nodes.size(), " times"));
        if (other.group != meeting.group)
          throw Flaw(text(where(out_.nodes[meeting.nodes[0]]), " meets ranks other than those of '",
                          to_text(*out_.nodes[other.nodes[0]].step), "' on rank ", member));
      }
      if (rank != meeting.group[0]) continue;
      for (std::size_t i = 0; i < meeting.nodes.size(); ++i) {
        std::vector<int>& event = out_.events.emplace_back();
        for (int member : meeting.group) event.push_back(meetings_.at(member).nodes[i]);
      }
    }
  }

  // Kahn's algorithm: an event runs when no node of it waits any more.
  void order_events() {
    std::vector<int> event_of(out_.nodes.size()), waits(out_.events.size(), 0);
    for (std::size_t event = 0; event < out_.events.size(); ++event)
      for (int node : out_.events[event]) {
        event_of[node] = static_cast<int>(event);
        waits[event] += static_cast<int>(out_.nodes[node].after.size());
      }
    std::vector<std::vector<int>> followers(out_.nodes.size());
    for (std::size_t node = 0; node < out_.nodes.size(); ++node)
      for (int earlier : out_.nodes[node].after) followers[earlier].push_back(event_of[node]);
    std::vector<int> order;
    for (std::size_t event = 0; event < waits.size(); ++event)
      if (waits[event] == 0) order.push_back(static_cast<int>(event));
    for (std::size_t i = 0; i < order.size(); ++i)
      for (int node : out_.events[order[i]])
        for (int event : followers[node])
          if (--waits[event] == 0) order.push_back(event);
    if (order.size() < waits.size()) throw Flaw(circle(event_of, waits));
    std::vector<std::vector<int>> ordered;
    for (int event : order) ordered.push_back(std::move(out_.events[event]));
    out_.events = std::move(ordered);
  }

  // Every event left waits for another one left, so following that leads into a circle; names its waits.
  std::string circle(const std::vector<int>& event_of, const std::vector<int>& waits) const {
    int event = static_cast<int>(std::find_if(waits.begin(), waits.end(), [](int w) { return w > 0; }) -
                                 waits.begin());
    std::vector<int> path;
    std::vector<std::string> lines;
    while (std::find(path.begin(), path.end(), event) == path.end()) {
      path.push_back(event);
      const auto [waiting, awaited] = a_wait_of(event, event_of, waits);
      lines.push_back(text(where(out_.nodes[waiting]), " waits for ", where(out_.nodes[awaited])));
      event = event_of[awaited];
    }
    std::string out = "deadlock";
    for (auto i = std::find(path.begin(), path.end(), event) - path.begin(); i < std::ssize(path); ++i)
      out += (out == "deadlock" ? ": " : "; ") + lines[i];
    return out;
  }

  std::pair<int, int> a_wait_of(int event, const std::vector<int>& event_of,
                                const std::vector<int>& waits) const {
    for (int node : out_.events[event])
      for (int earlier : out_.nodes[node].after)
        if (waits[event_of[earlier]] > 0) return {node, earlier};
    throw Flaw("deadlock");  // not reached: the event is left because it waits
  }

  int size() const { return static_cast<int>(out_.nodes.size()); }

  const std::vector<Plan>& plans_;
  const bool in_place_;
  Schedule out_;
  std::map<std::pair<int, int>, Channel> channels_;
  std::map<int, Meeting> meetings_;
};

}  // namespace

Schedule schedule(const std::vector<Plan>& plans, bool in_place) {
  return Builder(plans, in_place).build();
}

}  // namespace pycomm
