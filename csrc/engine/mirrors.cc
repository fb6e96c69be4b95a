#include "engine/mirrors.h"

#include <cstring>

namespace pycomm {

// In place one buffer contains the other, and both have one mirror.
Mirrors::Mirrors(PeerMemory& memory, const CompiledPlan& plan, const Layout& layout, const View& input,
                 const View& output)
    : plan_(plan), layout_(layout), wholes_{&input, &output} {
  const View& larger = input.bytes() > output.bytes() ? input : output;
  for (const int buffer : {kInput.id, kOutput.id})
    lend(memory, buffer, plan.in_place ? larger : *wholes_[buffer]);
  for (const ExposedChunk& chunk : plan.exposed) {
    if (!chunk.read || !mirrors_[chunk.buffer.id].memory) continue;
    const View view =
        whole(chunk.buffer).slice(layout.offset(chunk.buffer, chunk.chunk), layout.count(chunk.chunk));
    std::byte* const there = place(chunk.buffer, chunk.chunk, view.data);
    if (view.count > 0) std::memcpy(there, view.data, static_cast<std::size_t>(view.bytes()));
  }
}

void Mirrors::lend(PeerMemory& memory, int buffer, const View& extent) {
  const View& view = *wholes_[buffer];
  if (const auto region = memory.describe(view.span())) {
    regions_[buffer] = *region;
    return;
  }
  bool exposed = false;
  for (const ExposedChunk& chunk : plan_.exposed) exposed |= plan_.in_place || chunk.buffer.id == buffer;
  if (!exposed) return;
  Mirror& mirror = mirrors_[buffer];
  mirror.of = extent.data;
  mirror.memory = plan_.in_place && mirrors_[0].memory
                      ? mirrors_[0].memory
                      : memory.borrow(static_cast<std::size_t>(extent.bytes()));
  std::byte* const begin = mirror.memory.get() + (view.data - mirror.of);
  regions_[buffer] = *memory.describe({begin, static_cast<std::size_t>(view.bytes())});
}

std::byte* Mirrors::place(Buffer buffer, int chunk, std::byte* data) const {
  const Mirror& mirror = mirrors_[buffer.id];
  if (!mirror.memory || !plan_.find_exposed(buffer, chunk)) return data;
  return mirror.memory.get() + (data - mirror.of);
}

void Mirrors::copy_out() const {
  for (const ExposedChunk& chunk : plan_.exposed) {
    if (!chunk.written || !mirrors_[chunk.buffer.id].memory) continue;
    const View view =
        whole(chunk.buffer).slice(layout_.offset(chunk.buffer, chunk.chunk), layout_.count(chunk.chunk));
    if (view.count > 0)
      std::memcpy(view.data, place(chunk.buffer, chunk.chunk, view.data),
                  static_cast<std::size_t>(view.bytes()));
  }
}

}  // namespace pycomm
