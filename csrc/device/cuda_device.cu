#include "device/cuda_device.h"

#include <cuda_runtime.h>

#include "kernels/cuda_check.cuh"
#include "kernels/stream_kernels.h"

namespace pycomm {

const StreamKernels& cuda_kernels();  // kernels/gpu_elementwise.cu

namespace {

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(int card) : card_(card) {
    const CurrentCard current(card);
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "making an event");
  }
  ~CudaEvent() override { static_cast<void>(cudaEventDestroy(event_)); }

  bool reached() override {
    const CurrentCard current(card_);
    const cudaError_t answer = cudaEventQuery(event_);
    if (answer == cudaErrorNotReady) return false;
    check_cuda(answer, "work on a stream");
    return true;
  }
  cudaEvent_t event() const { return event_; }

 private:
  const int card_;
  cudaEvent_t event_ = nullptr;
};

class CudaStream final : public Stream {
 public:
  // Of our own: it does not wait for the default stream, nor that for it.
  explicit CudaStream(int card) : card_(card), owned_(true) {
    const CurrentCard current(card);
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "opening a stream");
  }
  CudaStream(int card, cudaStream_t stream) : card_(card), owned_(false), stream_(stream) {}
  ~CudaStream() override {
    if (owned_) static_cast<void>(cudaStreamDestroy(stream_));
  }

  void copy(void* to, const void* from, std::size_t bytes) override {
    const CurrentCard current(card_);
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copying");
  }
  void mark(Event& event) override {
    const CurrentCard current(card_);
    check_cuda(cudaEventRecord(dynamic_cast<CudaEvent&>(event).event(), stream_), "marking a stream");
  }
  void wait_for(Event& event) override {
    const CurrentCard current(card_);
    check_cuda(cudaStreamWaitEvent(stream_, dynamic_cast<CudaEvent&>(event).event(), 0),
               "making a stream wait");
  }
  void* handle() const override { return stream_; }
  int card() const override { return card_; }

 private:
  const int card_;
  const bool owned_;
  cudaStream_t stream_ = nullptr;
};

class CudaDevice final : public Device {
 public:
  std::string name() const override { return "cuda"; }
  int card_of(const void* memory) const override {
    cudaPointerAttributes attributes{};
    check_cuda(cudaPointerGetAttributes(&attributes, memory), "asking where an array lies");
    return attributes.device;
  }
  std::unique_ptr<Stream> open_stream(int card) override { return std::make_unique<CudaStream>(card); }
  std::unique_ptr<Stream> borrow_stream(int card, std::uintptr_t number) override {
    return std::make_unique<CudaStream>(card, reinterpret_cast<cudaStream_t>(number));
  }
  std::unique_ptr<Event> make_event(int card) override { return std::make_unique<CudaEvent>(card); }

  void pin(int card, void* memory, std::size_t bytes) override {
    const CurrentCard current(card);
    check_cuda(cudaHostRegister(memory, bytes, cudaHostRegisterPortable), "pinning host memory");
  }
  // Refused at exit, when the runtime is gone.
  void unpin(int card, void* memory) noexcept override {
    try {
      const CurrentCard current(card);
      static_cast<void>(cudaHostUnregister(memory));
    } catch (const TransportError&) {
    }
  }
  const StreamKernels& kernels() const override { return cuda_kernels(); }
};

CudaCard card_of(int number) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, number), "asking what a card is");
  return {properties.name, properties.totalGlobalMem, properties.major, properties.minor};
}

}  // namespace

CudaFacts cuda_facts() {
  CudaFacts facts;
  static_cast<void>(cudaRuntimeGetVersion(&facts.runtime_version));
  static_cast<void>(cudaDriverGetVersion(&facts.driver_version));
  if (facts.driver_version == 0) {
    facts.why = "this machine has no CUDA driver";
    return facts;
  }
  try {
    int count = 0;
    check_cuda(cudaGetDeviceCount(&count), "counting cards");
    for (int number = 0; number < count; ++number) facts.cards.push_back(card_of(number));
    if (count == 0) facts.why = "this machine has no card that CUDA serves";
  } catch (const TransportError& error) {
    facts.why = error.what();
  }
  return facts;
}

Device& cuda_device() {
  static auto* const device = new CudaDevice;
  return *device;
}

}  // namespace pycomm
