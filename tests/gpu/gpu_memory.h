// Memory and a stream of card 0, for the tests.
#pragma once

#include <cstddef>
#include <memory>

#include "device/cuda_device.h"

namespace pycomm {

class GpuMemory {
 public:
  explicit GpuMemory(std::size_t bytes);  // gpu_memory.cu
  ~GpuMemory();
  GpuMemory(const GpuMemory&) = delete;
  GpuMemory& operator=(const GpuMemory&) = delete;
  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  const std::size_t bytes_;
};

inline Stream& gpu_stream() {
  static const std::unique_ptr<Stream> stream = cuda_device().open_stream(0);
  return *stream;
}

inline void wait_for(Stream& stream) {
  const std::unique_ptr<Event> event = cuda_device().make_event(stream.card());
  stream.mark(*event);
  while (!event->reached()) {
  }
}

}  // namespace pycomm
