#include "engine/communicator.h"

#include <algorithm>
#include <cstdint>

#include "engine/executor_device.h"

namespace pycomm {
namespace {

// A call on a device's memory moves by pieces of so many segments: enough for a piece to be worked on without
// pauses, few enough for the pieces of a call to overlap.
constexpr std::int64_t kPieceSegments = 32;

template <class T>
std::uint8_t registry_index(const T& entry) {
  const auto& all = Registry<T>::instance().all();
  return static_cast<std::uint8_t>(std::find(all.begin(), all.end(), &entry) - all.begin());
}

// Where the scales go: before the sum where 16 bits hold partial sums or travel on a codec's wire, which
// would overflow; after it elsewhere, 16-bit data in a given order included, whose sums stay in f32.
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
  if ((is_half(dtype) && call.order == Order::any) || !codec.lossless) {
    operation.contribution_scale = scale;
  } else {
    operation.finish.scale = scale;
  }
}

Choice choice_of(const Call& call, const CheckedCall& checked, int size, bool mapped) {
  const DType dtype = call.input.dtype;
  return {.collective = call.collective,
          .size = size,
          .bytes = checked.count * size_of(dtype),
          .half = is_half(dtype),
          .lossy = !checked.codec.lossless,
          .wire_ratio = wire_ratio(checked.codec, dtype),
          .mapped = mapped,
          .uneven = !call.counts.empty(),
          .order = call.order};
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
      node_count_(static_cast<int>(nodes().size())),
      selector_(engine_->links().among(group_->world_ranks), node_of_, engine_->crowd(), segment_bytes,
                engine_->selection()) {
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
  return {call.collective, of_rank, size(), call.root, call.order, node_of_};
}

const Algorithm& Communicator::choose(const Call& call, const CheckedCall& checked) {
  const Choice choice = choice_of(call, checked, size(), node_count_ == 1);
  const Algorithm& algorithm = call.own_algorithm        ? call.own_algorithm->algorithm()
                               : !call.algorithm.empty() ? algorithm_named(call.collective, call.algorithm)
                                                         : selector_.select(choice);
  const std::string_view why = lacks(algorithm, choice);
  if (why.empty()) return algorithm;
  const bool named = call.own_algorithm || !call.algorithm.empty();
  const std::string flaw = call.own_algorithm ? call.own_algorithm->flaw(call.order) : "";
  throw InvalidArgument(text(
      name_of(call.collective), " by ", short_name(algorithm), named ? "" : ", as PYCOMM_ALGO says,",
      " cannot be done on ", size(), " ranks with codec ", checked.codec.name,
      call.order == Order::any ? ""
                               : text(" on ", name_of(call.input.dtype), " in order ", name_of(call.order)),
      ": ", why, flaw.empty() ? "" : ": ", flaw, "; these can: ", names_of_serving(choice)));
}

std::shared_ptr<const CompiledPlan> Communicator::plan_for(const Algorithm& algorithm, const Call& call,
                                                           bool in_place) {
  if (call.own_algorithm) return call.own_algorithm->compiled(in_place);
  const std::lock_guard lock(mutex_);
  auto& plan = plans_[PlanKey{&algorithm, call.root, call.order, in_place}];
  if (!plan) {
    const auto plan_of = [&](int of_rank) { return algorithm.plan(spec(call, of_rank)); };
    plan = std::make_shared<const CompiledPlan>(plan_of, rank(), in_place);
  }
  return plan;
}

std::unique_ptr<Executor> Communicator::executor_for(const Call& call, const CheckedCall& checked,
                                                     std::shared_ptr<Operation> operation,
                                                     const Header& header) const {
  Router& router = engine_->router();
  Staging& staging = engine_->staging();
  if (!call.placement.device)
    return std::make_unique<HostExecutor>(std::move(operation), header, router, staging);
  const Spec spec{call.collective, rank(), size(), call.root};
  const Pieces pieces(call, checked, spec, operation->plan->chunks, kPieceSegments * segment_bytes_);
  return std::make_unique<DeviceExecutor>(std::move(operation), call.placement, pieces, header, router,
                                          staging, engine_->pinned_memory());
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
  operation->order = call.order;
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
  header.order = static_cast<std::uint8_t>(call.order);
  header.in_pieces = call.placement.device != nullptr;
  header.context = group_->context;
  header.root = static_cast<std::uint16_t>(pair ? 0 : call.root);
  header.codec = registry_index(checked.codec);
  header.algorithm = pair ? 0 : call.own_algorithm ? kOwnAlgorithm : registry_index(algorithm);
  header.plans = call.own_algorithm ? call.own_algorithm->digest() : 0;
  header.count = static_cast<std::uint64_t>(checked.count);
  header.scale = static_cast<float>(call.scale);
  header.parts = call.counts.empty() ? 0 : kChosenParts;

  Prepared prepared;
  prepared.task =
      std::make_shared<Task>(std::move(call.keepalive), traced(call, header, algorithm, checked.codec));
  Task& task = *prepared.task;
  task.group = group_;
  task.executor = executor_for(call, checked, std::move(operation), header);
  task.header = header;
  // A recv travels as the send that it awaits.
  task.header.collective = static_cast<std::uint8_t>(call.collective);
  task.timeout_s = call.timeout_s > 0 ? call.timeout_s : engine_->settings().timeout_s;
  task.collective = !pair;
  prepared.call = std::move(call);
  return prepared;
}

std::unique_ptr<Prepared> Communicator::prepare_again(Call call) {
  engine_->check_usable();
  auto keepalive = std::move(call.keepalive);
  std::unique_ptr<Prepared> kept;
  {
    const std::lock_guard lock(mutex_);
    kept = recent_.take(call);
  }
  if (!kept) {
    call.keepalive = std::move(keepalive);
    return std::make_unique<Prepared>(prepare(std::move(call)));
  }
  kept->task->work.hold(std::move(keepalive));
  return kept;
}

void Communicator::keep(std::unique_ptr<Prepared> prepared) {
  prepared->task->work.hold(nullptr);
  const std::lock_guard lock(mutex_);
  recent_.keep(std::move(prepared));
}

std::shared_ptr<Work> Communicator::start(const Prepared& prepared) {
  engine_->check_usable();
  if (const auto failure = group_->failure()) raise(failure->kind, failure->what);
  Task& task = *prepared.task;
  Header& header = task.header;
  const std::lock_guard lock(mutex_);
  if (task.collective) {
    header.sequence = sequence_++;
    header.history = history_;
    history_ = header.next_history();
  } else {
    header.sequence = pair_sequence_[{prepared.call.root, prepared.call.collective == Collective::send}]++;
  }
  const auto plane = task.collective ? Plane::collectives : Plane::pairs;
  task.executor->number(header.sequence, header.history, tag_of(group_->context, plane, header.sequence));
  task.work.submit(header.sequence);
  engine_->driver().submit(prepared.task, prepared.call.soon);
  return {prepared.task, &task.work};
}

bool Communicator::wait(const Work& work, double seconds) {
  if (work.done()) return true;
  engine_->check_usable();
  const auto span = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  return engine_->driver().wait(work, span);
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
