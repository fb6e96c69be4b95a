// Stand-ins for buffers that peers must address and cannot, for an operation of a mapped plan: memory of
// theirs is a mirror, whole in size, of which only the exposed chunks are used. They are copied there before
// the peers are met and back at the end; what no peer touches stays where the caller has it. So ranks that
// lend such memory and ranks that do not run the same plan.
#pragma once

#include <array>
#include <memory>

#include "core/view.h"
#include "engine/compiled_plan.h"
#include "engine/layout.h"
#include "transport/transport.h"

namespace pycomm {

class Mirrors {
 public:
  // Copies in. Throws TransportError when there is no memory to borrow.
  Mirrors(PeerMemory& memory, const CompiledPlan& plan, const Layout& layout, const View& input,
          const View& output);

  std::array<Region, 2>& regions() { return regions_; }  // of input and output, for peers
  // Where a chunk lies now, of one that lies at `data` in the caller's buffer.
  std::byte* place(Buffer buffer, int chunk, std::byte* data) const;
  void copy_out() const;

 private:
  struct Mirror {
    std::byte* of = nullptr;
    std::shared_ptr<std::byte> memory;
  };

  void lend(PeerMemory& memory, int buffer, const View& whole);
  const View& whole(Buffer buffer) const { return *wholes_[buffer.id]; }

  const CompiledPlan& plan_;
  const Layout& layout_;
  const std::array<const View*, 2> wholes_;  // the caller's
  std::array<Mirror, 2> mirrors_;            // none: peers address the buffer itself
  std::array<Region, 2> regions_{};
};

}  // namespace pycomm
