#include "engine/communicator.h"

#include <algorithm>
#include <cstdint>

#include "plan/select.h"

namespace pycomm {
namespace {

template <class T>
std::uint8_t registry_index(const T& entry) {
  const auto& all = Registry<T>::instance().all();
  return static_cast<std::uint8_t>(std::find(all.begin(), all.end(), &entry) - all.begin());
}

// Whether the algorithm serves this choice with this codec.
bool serves(const Algorithm& algorithm, const Choice& choice, const Codec& codec) {
  return (!algorithm.supports || algorithm.supports(choice.size)) &&
         (codec.lossless || algorithm.lossy_codecs) && (!choice.uneven || algorithm.uneven) &&
         (choice.mapped || !algorithm.mapped || choice.size == 1);
}

// Where the scales go: before the sum for whatever is rounded to 16 bits, after it otherwise.
void place_scales(const Call& call, const Codec& codec, int size, Operation& operation) {
  const DType dtype = call.input.dtype;
  const bool average = call.op == ReduceOp::avg;
  operation.op = average ? ReduceOp::sum : call.op;
  if (!reduces(call.collective)) return;
  if (!is_floating(dtype)) {
    operation.finish.divisor = average ? size : 1;
    return;
  }
  const double scale = call.scale * (average ? 1.0 / size : 1.0);
  if (is_half(dtype) || !codec.lossless) {
    operation.contribution_scale = scale;
  } else {
    operation.finish.scale = scale;
  }
}

// The nodes of some ranks of the world.
std::vector<int> nodes_among(const std::vector<int>& world_node_of, const std::vector<int>& world_ranks) {
  std::vector<int> nodes;
  for (const int rank : world_ranks) nodes.push_back(world_node_of[rank]);
  return numbered(nodes);
}

TracedCall traced(const Call& call, const Header& header, const Algorithm& algorithm, const Codec& codec) {
  // Traces keep the view, which the names of registered algorithms outlive.
  const std::string_view name = call.own_algorithm ? std::string_view("own") : algorithm.name;
  const auto count = static_cast<std::int64_t>(header.count);
  return {name_of(call.collective),
          name_of(call.input.dtype),
          name.substr(name.find(':') + 1),
          codec.name,
          count,
          count * size_of(call.input.dtype),
          header.context,
          header.sequence,
          is_pair(call.collective) || has_root(call.collective) ? call.root : -1,
          call.bucket};
}

}  // namespace

Communicator::Communicator(std::shared_ptr<Engine> engine, std::shared_ptr<Group> group,
                           std::int64_t segment_bytes)
    : engine_(std::move(engine)),
      group_(std::move(group)),
      segment_bytes_(segment_bytes),
      node_of_(nodes_among(engine_->router().node_of(), group_->world_ranks)),
      node_count_(static_cast<int>(nodes().size())) {
  engine_->driver().announce(group_);
}

std::vector<std::vector<int>> Communicator::nodes() const {
  std::vector<std::vector<int>> nodes;
  for (int rank = 0; rank < size(); ++rank) {
    const auto node = static_cast<std::size_t>(node_of_.empty() ? rank : node_of_[rank]);
    if (node == nodes.size()) nodes.emplace_back();
    nodes[node].push_back(rank);
  }
  return nodes;
}

Spec Communicator::spec(const Call& call, int of_rank) const {
  return {call.collective, of_rank, size(), call.root, node_of_};
}

const Algorithm& Communicator::choose(const Call& call, const CheckedCall& checked) const {
  const DType dtype = call.input.dtype;
  const Choice choice{call.collective,
                      size(),
                      checked.count * size_of(dtype),
                      is_half(dtype) || !checked.codec.lossless,
                      node_count_ == 1,
                      !call.counts.empty(),
                      node_count_};
  const std::string name = call.algorithm.empty() ? select_algorithm(choice) : call.algorithm;
  const Algorithm& algorithm =
      call.own_algorithm ? call.own_algorithm->algorithm() : algorithm_named(call.collective, name);
  if (serves(algorithm, choice, checked.codec)) return algorithm;
  std::string fitting;
  for (const Algorithm* other : algorithms_for(call.collective))
    if (serves(*other, choice, checked.codec)) fitting += (fitting.empty() ? "" : ", ") + short_name(*other);
  throw InvalidArgument(
      text(name_of(call.collective), " by ", short_name(algorithm), " cannot be done on ", size(),
           " ranks with codec ", checked.codec.name, choice.uneven ? " in parts of chosen sizes" : "",
           choice.mapped ? "" : " on peers whose memory is not addressable", "; these can: ", fitting));
}

std::shared_ptr<const CompiledPlan> Communicator::plan_for(const Algorithm& algorithm, const Call& call,
                                                           bool in_place) {
  if (call.own_algorithm) return call.own_algorithm->compiled(in_place);
  const std::lock_guard lock(mutex_);
  auto& plan = plans_[PlanKey{&algorithm, call.root, in_place}];
  if (!plan) {
    const auto plan_of = [&](int of_rank) { return algorithm.plan(spec(call, of_rank)); };
    plan = std::make_shared<const CompiledPlan>(plan_of, rank(), size(), in_place);
  }
  return plan;
}

Prepared Communicator::prepare(Call call) {
  engine_->check_usable();
  const CheckedCall checked = check_call(call, rank(), size());
  const Algorithm& algorithm = choose(call, checked);
  const DType dtype = call.input.dtype;
  const bool pair = is_pair(call.collective);

  auto operation = std::make_shared<Operation>();
  operation->collective = call.collective;
  operation->input = call.input;
  operation->output = call.output;
  operation->codec = &checked.codec;
  operation->group = group_;
  operation->segment_count = std::max<std::int64_t>(1, segment_bytes_ / size_of(dtype));
  place_scales(call, checked.codec, size(), *operation);
  operation->plan = plan_for(algorithm, call, checked.in_place);
  operation->layout =
      checked.layout(call, {call.collective, rank(), size(), call.root}, operation->plan->chunks);

  Header header;
  // Both ends of a pair say the same.
  header.collective = static_cast<std::uint8_t>(pair ? Collective::send : call.collective);
  header.dtype = static_cast<std::uint8_t>(dtype);
  header.op = static_cast<std::uint8_t>(call.op);
  header.context = group_->context;
  header.root = static_cast<std::uint16_t>(pair ? 0 : call.root);
  header.codec = registry_index(checked.codec);
  header.algorithm = pair ? 0 : call.own_algorithm ? kOwnAlgorithm : registry_index(algorithm);
  header.plans = call.own_algorithm ? call.own_algorithm->digest() : 0;
  header.count = static_cast<std::uint64_t>(checked.count);
  header.scale = static_cast<float>(call.scale);
  header.parts = call.counts.empty() ? 0 : kChosenParts;

  return {.operation = std::move(operation),
          .header = header,
          .traced = traced(call, header, algorithm, checked.codec),
          .peer = call.root,
          .timeout_s = call.timeout_s > 0 ? call.timeout_s : engine_->settings().timeout_s,
          .soon = call.soon,
          .keepalive = std::move(call.keepalive)};
}

std::shared_ptr<Work> Communicator::start(const Prepared& prepared) {
  engine_->check_usable();
  if (const auto failure = group_->failure()) raise(failure->kind, failure->what);
  const Collective collective = prepared.operation->collective;
  const bool pair = is_pair(collective);
  Task task;
  task.group = group_;
  task.timeout_s = prepared.timeout_s;
  task.collective = !pair;
  const std::lock_guard lock(mutex_);
  Header header = prepared.header;
  header.sequence = pair ? pair_sequence_[{prepared.peer, collective == Collective::send}]++ : sequence_++;
  if (!pair) {
    header.history = history_;
    history_ = header.next_history();
  }
  TracedCall traced = prepared.traced;
  traced.sequence = header.sequence;
  task.work = std::make_shared<Work>(prepared.keepalive, traced);
  const Tag tag = tag_of(group_->context, pair ? Plane::pairs : Plane::collectives, header.sequence);
  task.start = [engine = engine_.get(), operation = prepared.operation, header, tag] {
    return std::make_unique<HostExecutor>(operation, header, tag, engine->router(), engine->staging());
  };
  task.header = header;
  task.header.collective =
      static_cast<std::uint8_t>(collective);  // a recv travels as the send that it awaits
  auto work = task.work;
  engine_->driver().submit(std::move(task), prepared.soon);
  return work;
}

bool Communicator::wait(const Work& work, double seconds) {
  if (work.done()) return true;
  engine_->check_usable();
  const auto span = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  return engine_->driver().wait(work, Clock::now() + span);
}

void Communicator::abort(const std::string& why) {
  engine_->check_usable();
  engine_->driver().abort(group_, {ErrorKind::aborted, why});
}

std::shared_ptr<Communicator> Communicator::subgroup(std::uint32_t context, int rank,
                                                     std::vector<int> world_ranks,
                                                     std::int64_t segment_bytes) const {
  engine_->check_usable();
  auto group = std::make_shared<Group>(context, rank, std::move(world_ranks));
  return std::make_shared<Communicator>(engine_, std::move(group), segment_bytes);
}

std::int64_t Communicator::preferred_segment_bytes(const std::vector<int>& world_ranks) const {
  engine_->check_usable();
  std::int64_t segment = std::int64_t{1} << 20;
  for (int peer : world_ranks)
    if (peer != engine_->rank()) segment = std::min(segment, engine_->router().pacing(peer).segment_bytes);
  return segment;
}

}  // namespace pycomm
