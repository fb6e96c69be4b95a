// What a lossy codec asks of the executor besides encoding what leaves and decoding what comes.
//
// In a given order the result must not depend on who adds, so the wire's rounding is made part of the
// numbers: every contribution passes the codec once, those that never travel too, and so does every result,
// whether it is sent on or not.
#include "engine/executor_host.h"

namespace pycomm {

Operand HostExecutor::operand_of(Buffer source, int chunk, std::int64_t segment, Staging::Block& own) {
  const View there = segment_view(source, chunk, segment);
  const double scale = contribution_scale(source);
  if (!lossy() || operation_.order == Order::any || source != kInput) return {there.data, scale};
  const Codec& codec = *operation_.codec;
  own = staging_.take(there.bytes() + codec.wire_bytes(there.count, there.dtype));
  std::byte* const wire = own.data() + there.bytes();
  codec.encode(there, wire, scale);
  codec.decode(wire, {own.data(), there.count, there.dtype});
  return {own.data(), 1.0};
}

// A wire that was kept for dst is out of date, but where the result has just passed the codec.
void HostExecutor::settle(const Step& step, std::int64_t segment) {
  if (!lossy()) return;
  const Codec& codec = *operation_.codec;
  const bool keeps = step.dst == kOutput, passes = step.final && operation_.order != Order::any;
  if (passes) {
    const View result = segment_view(step.dst, step.chunk, segment);
    const Staging::Block block = staging_.take(keeps ? 0 : codec.wire_bytes(result.count, result.dtype));
    std::byte* const wire = keeps ? kept_wire(step.chunk, segment) : block.data();
    codec.encode(result, wire, 1.0);
    codec.decode(wire, result);
  }
  if (keeps) kept_valid_[kept_index(step.chunk, segment)] = passes;
}

std::byte* HostExecutor::kept_wire(int chunk, std::int64_t segment) const {
  return kept_.data() + static_cast<std::int64_t>(kept_index(chunk, segment)) * wire_segment_bytes_;
}

}  // namespace pycomm
