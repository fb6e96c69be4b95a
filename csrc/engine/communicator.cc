#include "engine/communicator.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/executor_host.h"
#include "plan/select.h"

namespace pycomm {
namespace {

constexpr std::uint32_t kPairPlane = 1;  // lowest bit of a tag's context: sends and receives, not collectives

bool is_pair(Collective collective) {
  return collective == Collective::send || collective == Collective::recv;
}

template <class T>
std::uint8_t registry_index(const T& entry) {
  const auto& all = Registry<T>::instance().all();
  return static_cast<std::uint8_t>(std::find(all.begin(), all.end(), &entry) - all.begin());
}

// Elements of the whole vector, after checking that input and output fit together.
std::int64_t checked_count(const Call& call, int rank, int size) {
  const View& input = call.input;
  const View& output = call.output;
  const auto name = name_of(call.collective);
  PYCOMM_CHECK(input.dtype == output.dtype, name, ": input is ", name_of(input.dtype), " and out is ",
               name_of(output.dtype), "; expected the same dtype");
  switch (call.collective) {
    case Collective::reduce_scatter: {
      const std::int64_t part = Partition{input.count, size}.size(rank);
      PYCOMM_CHECK(output.count == part, "reduce_scatter: out has ", output.count, " elements; rank ", rank,
                   " of ", size, " gets ", part, " of the input's ", input.count);
      return input.count;
    }
    case Collective::all_gather: {
      const std::int64_t part = Partition{output.count, size}.size(rank);
      PYCOMM_CHECK(input.count == part, "all_gather: the input has ", input.count, " elements; rank ", rank,
                   " of ", size, " gives ", part, " of out's ", output.count);
      return output.count;
    }
    case Collective::barrier:
      return 0;
    default:
      PYCOMM_CHECK(input.count == output.count, name, ": input has ", input.count, " elements and out has ",
                   output.count, "; expected the same count");
      return input.count;
  }
}

// Whether input and output are the same memory; overlapping otherwise is refused.
bool checked_in_place(const Call& call, std::int64_t count, int rank, int size) {
  const View& input = call.input;
  const View& output = call.output;
  if (count == 0 || is_pair(call.collective) || call.collective == Collective::broadcast) return true;
  const Partition partition{count, size};
  const std::byte* twin = output.data;
  if (call.collective == Collective::all_gather) twin = output.at(partition.offset(rank));
  const std::byte* source = input.data;
  if (call.collective == Collective::reduce_scatter) source = input.at(partition.offset(rank));
  if (source == twin) return true;
  const bool apart = input.data + input.bytes() <= output.data || output.data + output.bytes() <= input.data;
  PYCOMM_CHECK(apart, name_of(call.collective),
               ": input and out overlap; they must be separate, or (in place) the same memory", "");
  return false;
}

void check_op(const Call& call) {
  const DType dtype = call.input.dtype;
  const bool summed = call.op == ReduceOp::sum || call.op == ReduceOp::avg;
  PYCOMM_CHECK(std::isfinite(call.scale), "scale is ", call.scale, "; expected a finite number");
  if (call.scale == 1.0) return;
  PYCOMM_CHECK(reduces(call.collective) && summed && is_floating(dtype), "scale ", call.scale, " with op ",
               name_of(call.op), " on ", name_of(dtype), " in ", name_of(call.collective),
               ": only sum and avg of floating dtypes are scaled");
}

void check_codec(const Call& call, const Codec& codec) {
  if (codec.lossless) return;
  const DType dtype = call.input.dtype;
  const bool summed = call.op == ReduceOp::sum || call.op == ReduceOp::avg;
  PYCOMM_CHECK(reduces(call.collective) && summed && (dtype == DType::f32 || dtype == DType::f64), "codec ",
               codec.name, " with op ", name_of(call.op), " on ", name_of(dtype), " in ",
               name_of(call.collective),
               ": lossy codecs serve sum and avg of f32 and f64 in all_reduce and reduce_scatter");
}

void check_root(const Call& call, int rank, int size) {
  PYCOMM_CHECK(call.root >= 0 && call.root < size, is_pair(call.collective) ? "peer" : "root", " is ",
               call.root, "; expected a rank from 0 to ", size - 1);
  PYCOMM_CHECK(!is_pair(call.collective) || call.root != rank, name_of(call.collective), ": rank ", rank,
               " cannot exchange messages with itself");
}

bool keeps(const Algorithm& algorithm, int size, const Codec& codec, bool mapped) {
  return (!algorithm.supports || algorithm.supports(size)) && (codec.lossless || algorithm.lossy_codecs) &&
         (mapped || !algorithm.mapped || size == 1);
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

TracedCall traced(const Call& call, const Header& header, const Algorithm& algorithm, const Codec& codec) {
  const std::string_view name = algorithm.name;
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
      mapped_(engine_->router().peer_memory(group_->world_ranks) != nullptr) {
  engine_->driver().announce(group_);
}

const Algorithm& Communicator::choose(const Call& call, const Codec& codec, std::int64_t bytes) const {
  const bool explicit_choice = !call.algorithm.empty();
  const Choice choice{call.collective, size(), bytes, is_half(call.input.dtype) || !codec.lossless, mapped_};
  const Algorithm& algorithm =
      algorithm_named(call.collective, explicit_choice ? call.algorithm : select_algorithm(choice));
  if (keeps(algorithm, size(), codec, mapped_)) return algorithm;
  std::string fitting;
  for (const Algorithm* other : algorithms_for(call.collective))
    if (keeps(*other, size(), codec, mapped_)) fitting += (fitting.empty() ? "" : ", ") + short_name(*other);
  throw InvalidArgument(text(name_of(call.collective), " by ", short_name(algorithm), " cannot be done on ",
                             size(), " ranks with codec ", codec.name,
                             mapped_ ? "" : " on peers whose memory is not addressable",
                             "; these can: ", fitting));
}

std::shared_ptr<const CompiledPlan> Communicator::plan_for(const Algorithm& algorithm, const Call& call,
                                                           bool in_place) {
  auto& plan = plans_[PlanKey{&algorithm, call.root, in_place}];
  if (!plan)
    plan = std::make_shared<const CompiledPlan>(algorithm.plan({call.collective, rank(), size(), call.root}),
                                                in_place);
  return plan;
}

Communicator::Checked Communicator::checked(const Call& call) const {
  const Codec& codec = codec_named(call.codec.empty() ? "none" : call.codec);
  check_root(call, rank(), size());
  check_op(call);
  check_codec(call, codec);
  const std::int64_t count = checked_count(call, rank(), size());
  const bool in_place = checked_in_place(call, count, rank(), size());
  return {codec, choose(call, codec, count * size_of(call.input.dtype)), count, in_place};
}

std::shared_ptr<Work> Communicator::submit(Call call) {
  engine_->check_usable();
  if (const auto failure = group_->failure()) raise(failure->kind, failure->what);
  const auto [codec, algorithm, count, in_place] = checked(call);
  const DType dtype = call.input.dtype;
  const bool pair = is_pair(call.collective);

  Operation operation;
  operation.collective = call.collective;
  operation.input = call.input;
  operation.output = call.output;
  operation.codec = &codec;
  operation.group = group_;
  operation.segment_count = std::max<std::int64_t>(1, segment_bytes_ / size_of(dtype));
  place_scales(call, codec, size(), operation);

  Header& header = operation.header;
  // Both ends of a pair say the same.
  header.collective = static_cast<std::uint8_t>(pair ? Collective::send : call.collective);
  header.dtype = static_cast<std::uint8_t>(dtype);
  header.op = static_cast<std::uint8_t>(call.op);
  header.context = group_->context;
  header.root = static_cast<std::uint16_t>(pair ? 0 : call.root);
  header.codec = registry_index(codec);
  header.algorithm = pair ? 0 : registry_index(algorithm);
  header.count = static_cast<std::uint64_t>(count);
  header.scale = static_cast<float>(call.scale);

  Task task;
  task.group = group_;
  task.timeout_s = call.timeout_s > 0 ? call.timeout_s : engine_->settings().timeout_s;
  task.collective = !pair;

  const std::lock_guard lock(mutex_);
  operation.plan = plan_for(algorithm, call, in_place);
  header.sequence = pair ? pair_sequence_[{call.root, call.collective == Collective::send}]++ : sequence_++;
  if (!pair) {
    header.history = history_;
    history_ = header.next_history();
  }
  operation.tag = {2 * group_->context + (pair ? kPairPlane : 0), header.sequence};
  task.header = header;
  task.work = std::make_shared<Work>(std::move(call.keepalive), traced(call, header, algorithm, codec));
  auto work = task.work;
  task.start = [engine = engine_.get(), operation = std::move(operation)] {
    return std::make_unique<HostExecutor>(operation, engine->router(), engine->staging());
  };
  engine_->driver().submit(std::move(task), call.soon);
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
