// Random mistakes in every registered plan. Those that are surely wrong must be found; of the others, what
// verify() accepts must come out right when it runs in random order.
#include <algorithm>
#include <functional>
#include <random>
#include <utility>

#include "check.h"
#include "layouts.h"
#include "plan/text.h"
#include "plan/verify.h"
#include "plan_simulation.h"

using namespace pycomm;

namespace {

using Plans = std::vector<Plan>;
using Random = std::mt19937;

constexpr int kLargestSize = 8;

// A collective of plans, with the mistakes that are made in it.
struct Subject {
  const Algorithm* algorithm;
  Collective collective;
  int root;
  Plans plans;
  NodeOf node_of = {};
};

int pick(Random& random, std::size_t count) {
  return static_cast<int>(random() % count);
}

Subject subject_of(const Algorithm& algorithm, int size, Random& random) {
  const Collective collective = collective_of(algorithm);
  const int root = pick(random, size);
  const NodeOf node_of = algorithm.volume_of_node ? any_layout(random, size) : NodeOf{};
  Subject subject{&algorithm, collective, root, Plans(size), node_of};
  if (collective == Collective::send || collective == Collective::recv) {
    const bool sends = collective == Collective::send;
    const Collective reverse = sends ? Collective::recv : Collective::send;
    const int caller = (root + 1 + pick(random, size - 1)) % size;
    subject.plans[caller] = algorithm.plan({collective, caller, size, root});
    subject.plans[root] = algorithm_named(reverse, short_name(algorithm)).plan({reverse, root, size, caller});
  } else {
    for (int rank = 0; rank < size; ++rank)
      subject.plans[rank] = algorithm.plan({collective, rank, size, root, node_of});
  }
  return subject;
}

std::vector<bool> places_to_try(Collective collective) {
  if (collective == Collective::broadcast) return {true};
  if (collective == Collective::all_to_all) return {false};
  return {false, true};
}

std::string verify_subject(const Subject& subject, bool in_place) {
  return verify(
      subject.collective, subject.root, subject.plans,
      {.in_place = in_place, .lossy_codecs = subject.algorithm->lossy_codecs, .node_of = subject.node_of});
}

// --- the numbers that must come out ------------------------------------------
using Number = Simulation::Number;

Number data_of(int rank, int chunk) {
  return (Number(rank) * 1000 + Number(chunk) + 1) * 0x9e3779b97f4a7c15u;
}

// Said again, not taken from has_chunk: plan.h is what the tests hold both to.
bool gives(const Subject& subject, int rank, int chunk) {
  switch (subject.collective) {
    case Collective::all_gather:
    case Collective::gather:
      return chunk == rank;
    case Collective::broadcast:
    case Collective::scatter:
      return rank == subject.root;
    case Collective::all_to_all:
      return chunk / static_cast<int>(subject.plans.size()) == rank;
    default:
      return true;
  }
}

bool gets(const Subject& subject, int rank, int chunk) {
  switch (subject.collective) {
    case Collective::reduce_scatter:
    case Collective::scatter:
      return chunk == rank;
    case Collective::reduce:
    case Collective::gather:
    case Collective::send:
      return rank == subject.root;
    case Collective::recv:
      return rank != subject.root && !subject.plans[rank].stages.empty();
    case Collective::all_to_all:
      return chunk % static_cast<int>(subject.plans.size()) == rank;
    default:
      return true;
  }
}

// Whose data chunk `chunk` of a collective that adds nothing is.
int origin(const Subject& subject, int chunk) {
  const int size = static_cast<int>(subject.plans.size());
  if (subject.collective == Collective::all_to_all) return chunk / size;
  if (subject.collective == Collective::all_gather || subject.collective == Collective::gather) return chunk;
  for (int rank = 0; subject.collective == Collective::send && rank < size; ++rank)
    if (rank != subject.root && !subject.plans[rank].stages.empty()) return rank;
  return subject.root;
}

Number expected(const Subject& subject, int chunk) {
  if (!reduces(subject.collective)) return data_of(origin(subject, chunk), chunk);
  Number sum = 0;
  for (int rank = 0; rank < static_cast<int>(subject.plans.size()); ++rank) sum += 15 * data_of(rank, chunk);
  return sum;
}

// What is wrong with the results of one run in random order; empty if nothing.
std::string simulate_values(const Subject& subject, SimulationOptions options, Random& random) {
  const int size = static_cast<int>(subject.plans.size()), chunks = subject.plans[0].chunks;
  Simulation simulation(subject.collective, subject.plans, options, random);
  for (int rank = 0; rank < size; ++rank)
    for (int chunk = 0; chunk < chunks; ++chunk)
      if (gives(subject, rank, chunk)) simulation.provide(rank, chunk, data_of(rank, chunk));
  simulation.run();
  std::map<int, Number> first;
  for (int rank = 0; rank < size; ++rank) {
    if (!simulation.finished(rank)) return text("rank ", rank, " hangs");
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (!gets(subject, rank, chunk)) continue;
      const Number got = simulation.output(rank, chunk);
      if (!options.lossy && got != expected(subject, chunk))
        return text("rank ", rank, " chunk ", chunk, " is wrong");
      if (first.try_emplace(chunk, got).first->second != got)
        return text("chunk ", chunk, " differs on rank ", rank);
    }
  }
  return "";
}

// Nobody leaves a barrier that one rank has not entered.
std::string simulate_barrier(const Subject& subject, SimulationOptions options, Random& random) {
  const int size = static_cast<int>(subject.plans.size());
  for (int frozen = 0; frozen < size; ++frozen) {
    Simulation simulation(subject.collective, subject.plans, options, random);
    simulation.run(frozen);
    for (int rank = 0; rank < size; ++rank)
      if (rank != frozen && simulation.finished(rank))
        return text("rank ", rank, " did not wait for ", frozen);
    simulation.run();
    for (int rank = 0; rank < size; ++rank)
      if (!simulation.finished(rank)) return text("rank ", rank, " hangs");
  }
  return "";
}

std::string simulate(const Subject& subject, bool in_place, Random& random) {
  for (const bool lossy : {false, true}) {
    if (lossy && !subject.algorithm->lossy_codecs) continue;
    for (const bool synchronous : {false, true}) {
      const SimulationOptions options{.in_place = in_place, .lossy = lossy, .synchronous = synchronous};
      const std::string wrong = subject.collective == Collective::barrier
                                    ? simulate_barrier(subject, options, random)
                                    : simulate_values(subject, options, random);
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

// --- mistakes ----------------------------------------------------------------
// Where a mistake is made.
struct Spot {
  Subject& subject;
  int rank, stage, index;
  Random& random;

  Plan& plan() { return subject.plans[rank]; }
  std::vector<Step>& steps() { return plan().stages[stage].steps; }
  Step& step() { return steps()[index]; }
  int size() { return static_cast<int>(subject.plans.size()); }
  bool is(Op op) { return step().op == op; }
  bool is_message() { return is(Op::send) || is(Op::recv) || is(Op::recv_reduce); }
  bool moves_data() { return subject.collective != Collective::barrier; }
};

// Returns whether the mistake could be made there.
using Mistake = bool (*)(Spot& spot);

bool other_number(Random& random, int& number, int count) {
  if (count < 2) return false;
  number = (number + 1 + pick(random, count - 1)) % count;
  return true;
}

const std::map<std::string, Mistake> kSureMistakes = {
    {"drop a step",
     [](Spot& spot) {
       if (!spot.moves_data() && !spot.is_message()) return false;
       spot.steps().erase(spot.steps().begin() + spot.index);
       return true;
     }},
    {"repeat a message",
     [](Spot& spot) {
       if (!spot.is_message()) return false;
       spot.steps().push_back(Step(spot.step()));
       return true;
     }},
    {"take another peer",
     [](Spot& spot) {
       if (!spot.is_message()) return false;
       const int before = spot.step().peers[0];
       return other_number(spot.random, spot.step().peers[0], spot.size()) && spot.step().peers[0] != before;
     }},
    {"take another chunk",
     [](Spot& spot) {
       return !spot.is(Op::meet) && other_number(spot.random, spot.step().chunk, spot.plan().chunks);
     }},
    {"leave out a peer",
     [](Spot& spot) {
       auto& peers = spot.step().peers;
       if (peers.empty()) return false;
       peers.erase(peers.begin() + pick(spot.random, peers.size()));
       return true;
     }},
    {"forget final", [](Spot& spot) { return std::exchange(spot.step().final, false); }},
    {"mark final", [](Spot& spot) { return !std::exchange(spot.step().final, true); }},
    {"forget publish", [](Spot& spot) { return std::exchange(spot.step().publish, false); }},
    {"swap operands",
     [](Spot& spot) {
       if (!spot.is(Op::reduce) || short_name(*spot.subject.algorithm) != "recursive_doubling") return false;
       std::swap(spot.step().sources[0], spot.step().sources[1]);
       return true;
     }},
    {"leave out an operand",
     [](Spot& spot) {
       auto& sources = spot.step().sources;
       if (sources.empty()) return false;
       sources.erase(sources.begin() + pick(spot.random, sources.size()));
       return true;
     }},
    {"reduce in another order",
     [](Spot& spot) {
       if (!spot.is(Op::reduce_from) || spot.size() < 2) return false;
       std::swap(spot.step().peers.front(), spot.step().peers.back());
       return true;
     }},
    {"overwrite instead of adding",
     [](Spot& spot) { return spot.is(Op::recv_reduce) && (spot.step().op = Op::recv, true); }},
    {"add instead of overwriting",
     [](Spot& spot) {
       if (!spot.is(Op::recv)) return false;
       spot.step().op = Op::recv_reduce;
       spot.step().src = spot.step().dst;
       return true;
     }},
    {"read another buffer",
     [](Spot& spot) {
       Step& step = spot.step();
       const bool reads =
           spot.is(Op::send) || spot.is(Op::recv_reduce) || spot.is(Op::copy) || spot.is(Op::reduce_from);
       // What a rank of an all_gather has copied, and published already, it may send from either.
       const bool copied = short_name(*spot.subject.algorithm) == "bruck" && spot.is(Op::send) &&
                           step.chunk == spot.rank && !step.publish;
       if (!reads || !spot.moves_data() || is_scratch(step.src) || copied) return false;
       step.src = step.src == kInput ? kOutput : kInput;
       return true;
     }},
    {"write another buffer",
     [](Spot& spot) {
       if (spot.is(Op::send) || spot.is(Op::meet) || !spot.moves_data()) return false;
       spot.step().dst = pick(spot.random, 2) == 0 ? kInput : scratch(40);
       return true;
     }},
    {"swap two messages",
     [](Spot& spot) {
       const Step chosen = spot.step();
       for (std::size_t stage = spot.stage; stage < spot.plan().stages.size(); ++stage)
         for (Step& other : spot.plan().stages[stage].steps)
           if (spot.is_message() && other.op == chosen.op && other.peers == chosen.peers &&
               other.chunk != chosen.chunk) {
             std::swap(other, spot.step());
             return true;
           }
       return false;
     }},
    {"cut the vector differently",
     [](Spot& spot) {
       ++spot.plan().chunks;
       return true;
     }},
};

bool any_buffer(Spot& spot, Buffer& buffer) {
  const Buffer before = buffer;
  buffer.id = pick(spot.random, 6);
  return !(buffer == before);
}

const std::map<std::string, Mistake> kOtherMistakes = {
    {"move a step",
     [](Spot& spot) {
       const Step step = spot.step();
       const std::size_t target = pick(spot.random, spot.plan().stages.size());
       spot.steps().erase(spot.steps().begin() + spot.index);
       auto& steps = spot.plan().stages[target].steps;
       steps.insert(steps.begin() + pick(spot.random, steps.size() + 1), step);
       return true;
     }},
    {"swap two stages",
     [](Spot& spot) {
       std::swap(spot.plan().stages[spot.stage],
                 spot.plan().stages[pick(spot.random, spot.plan().stages.size())]);
       return true;
     }},
    {"join two stages on all ranks",
     [](Spot& spot) {
       for (Plan& plan : spot.subject.plans) {
         if (static_cast<int>(plan.stages.size()) <= spot.stage + 1) continue;
         auto& next = plan.stages[spot.stage + 1].steps;
         auto& steps = plan.stages[spot.stage].steps;
         steps.insert(steps.end(), next.begin(), next.end());
         plan.stages.erase(plan.stages.begin() + spot.stage + 1);
       }
       return true;
     }},
    {"split a stage",
     [](Spot& spot) {
       Stage rest;
       rest.steps.assign(spot.steps().begin() + spot.index, spot.steps().end());
       spot.steps().resize(spot.index);
       spot.plan().stages.insert(spot.plan().stages.begin() + spot.stage + 1, rest);
       return true;
     }},
    {"drop a stage on all ranks",
     [](Spot& spot) {
       for (Plan& plan : spot.subject.plans)
         if (static_cast<int>(plan.stages.size()) > spot.stage)
           plan.stages.erase(plan.stages.begin() + spot.stage);
       return true;
     }},
    {"repeat a stage on all ranks",
     [](Spot& spot) {
       for (Plan& plan : spot.subject.plans)
         if (static_cast<int>(plan.stages.size()) > spot.stage)
           plan.stages.insert(plan.stages.begin() + spot.stage, Stage(plan.stages[spot.stage]));
       return true;
     }},
    {"use any source", [](Spot& spot) { return any_buffer(spot, spot.step().src); }},
    {"use any destination", [](Spot& spot) { return any_buffer(spot, spot.step().dst); }},
    {"use any operand",
     [](Spot& spot) {
       auto& sources = spot.step().sources;
       return !sources.empty() && any_buffer(spot, sources[pick(spot.random, sources.size())]);
     }},
    {"use one scratch slot for two",
     [](Spot& spot) {
       const Buffer victim = scratch(pick(spot.random, 3)), other = scratch(pick(spot.random, 3));
       for (Stage& stage : spot.plan().stages)
         for (Step& step : stage.steps) {
           if (step.src == victim) step.src = other;
           if (step.dst == victim) step.dst = other;
           for (Buffer& source : step.sources)
             if (source == victim) source = other;
         }
       return true;
     }},
    {"shuffle a stage",
     [](Spot& spot) {
       std::shuffle(spot.steps().begin(), spot.steps().end(), spot.random);
       return true;
     }},
    {"publish", [](Spot& spot) { return !std::exchange(spot.step().publish, true); }},
};

// Makes the mistake somewhere; false if nowhere was found after a while.
bool make(Mistake mistake, Subject& subject, Random& random) {
  for (int attempt = 0; attempt < 50; ++attempt) {
    const int rank = pick(random, subject.plans.size());
    auto& stages = subject.plans[rank].stages;
    if (stages.empty()) continue;
    const int stage = pick(random, stages.size());
    if (stages[stage].steps.empty()) continue;
    Spot spot{subject, rank, stage, pick(random, stages[stage].steps.size()), random};
    if (mistake(spot)) return true;
  }
  return false;
}

std::string plans_text(const Subject& subject) {
  std::string out = text(subject.algorithm->name, ", root ", subject.root, "\n");
  for (std::size_t rank = 0; rank < subject.plans.size(); ++rank)
    out += text("rank ", rank, ": ", to_text(subject.plans[rank]));
  return out;
}

void for_every_subject(Random& random, const std::function<void(const Subject& subject)>& visit) {
  for (const Algorithm* algorithm : Registry<Algorithm>::instance().all())
    for (int size = 2; size <= kLargestSize; ++size)
      if (!algorithm->supports || algorithm->supports(size)) visit(subject_of(*algorithm, size, random));
}

}  // namespace

TEST(every_plan_comes_out_right_in_random_order) {
  Random random(1);
  for_every_subject(random, [&](const Subject& subject) {
    for (const bool in_place : places_to_try(subject.collective))
      for (int repeat = 0; repeat < 3; ++repeat)
        CHECK_EQ(simulate(subject, in_place, random), "", "in ", plans_text(subject));
  });
}

TEST(sure_mistakes_are_found_in_every_plan) {
  Random random(2);
  std::map<std::string, int> made;
  for_every_subject(random, [&](const Subject& right) {
    for (const auto& [name, mistake] : kSureMistakes)
      for (int repeat = 0; repeat < 6; ++repeat) {
        Subject wrong = right;
        if (!make(mistake, wrong, random)) continue;
        ++made[name];
        bool found = false;
        for (const bool in_place : places_to_try(wrong.collective))
          found |= !verify_subject(wrong, in_place).empty();
        CHECK_EQ(found, true, "'", name, "' in ", plans_text(wrong));
      }
  });
  for (const auto& [name, mistake] : kSureMistakes) CHECK(made[name] > 20);
}

TEST(what_is_accepted_after_a_mistake_comes_out_right_in_random_order) {
  Random random(3);
  std::map<std::string, int> made;
  int accepted = 0, found = 0;
  const auto try_mistake = [&](const std::string& name, Mistake mistake, Subject subject) {
    if (!make(mistake, subject, random)) return;
    ++made[name];
    for (const bool in_place : places_to_try(subject.collective)) {
      const bool right_still = verify_subject(subject, in_place).empty();
      ++(right_still ? accepted : found);
      for (int order = 0; right_still && order < 2; ++order)
        CHECK_EQ(simulate(subject, in_place, random), "", "after '", name, "' in ", plans_text(subject));
    }
  };
  for_every_subject(random, [&](const Subject& right) {
    for (const auto& [name, mistake] : kSureMistakes) try_mistake(name, mistake, right);
    for (int repeat = 0; repeat < 3; ++repeat)
      for (const auto& [name, mistake] : kOtherMistakes) try_mistake(name, mistake, right);
  });
  for (const auto& [name, mistake] : kOtherMistakes) CHECK(made[name] > 20);
  CHECK(accepted > 1000);
  CHECK(found > 1000);
}
