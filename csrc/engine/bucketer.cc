#include "engine/bucketer.h"

#include <cstring>

#include "core/error.h"

namespace pycomm {

Bucketer::Bucketer(std::shared_ptr<Communicator> communicator, std::vector<View> buffers,
                   std::vector<Slot> slots, Options options, std::shared_ptr<void> keepalive)
    : communicator_(std::move(communicator)),
      buffers_(std::move(buffers)),
      slots_(std::move(slots)),
      options_(std::move(options)),
      keepalive_(std::move(keepalive)) {
  for (const Slot& slot : slots_) {
    PYCOMM_CHECK(slot.bucket >= 0 && slot.bucket < static_cast<int>(buffers_.size()),
                 "a slot lies in bucket ", slot.bucket, " of ", buffers_.size());
    const std::int64_t room = buffers_[slot.bucket].count;
    PYCOMM_CHECK(slot.offset >= 0 && slot.count >= 0 && slot.offset + slot.count <= room,
                 "a slot covers elements ", slot.offset, " to ", slot.offset + slot.count, " of a bucket of ",
                 room);
  }
  for (std::size_t i = 0; i < buffers_.size(); ++i)
    communicator_->check(reduction_of(static_cast<int>(i), 1.0));
  reset();
}

void Bucketer::reset() {
  PYCOMM_CHECK(launched_ == 0, "a round cannot be dropped once a bucket of it is launched");
  filled_.assign(slots_.size(), 0);
  missing_.assign(buffers_.size(), 0);
  for (const Slot& slot : slots_) ++missing_[slot.bucket];
  full_ = 0;
  works_.clear();
}

const Bucketer::Slot& Bucketer::checked(int slot, const char* call) const {
  PYCOMM_CHECK(slot >= 0 && slot < static_cast<int>(slots_.size()), call, ": slot is ", slot,
               "; expected 0 to ", static_cast<int>(slots_.size()) - 1);
  check_open(call);
  PYCOMM_CHECK(!filled_[slot], call, ": slot ", slot, " of bucket ", slots_[slot].bucket,
               " was already filled in this round");
  return slots_[slot];
}

void Bucketer::check_open(const char* call) const {
  PYCOMM_CHECK(!anybody_, call, ": this round is flushed; wait() ends it and begins the next");
}

int Bucketer::put(int index, const View& gradient, double scale) {
  const Slot& slot = checked(index, "put");
  const View place = buffers_[slot.bucket].slice(slot.offset, slot.count);
  PYCOMM_CHECK(gradient.dtype == place.dtype && gradient.count == place.count, "put: the gradient of slot ",
               index, " is ", name_of(gradient.dtype), " x ", gradient.count, "; expected ",
               name_of(place.dtype), " x ", place.count);
  if (place.count > 0 && gradient.data != place.data)
    std::memcpy(place.data, gradient.data, static_cast<std::size_t>(place.bytes()));
  return mark(index, scale);
}

int Bucketer::mark(int index, double scale) {
  const Slot& slot = checked(index, "mark");
  filled_[index] = 1;
  --missing_[slot.bucket];
  while (full_ < static_cast<int>(buffers_.size()) && missing_[full_] == 0) ++full_;
  if (options_.launch_when_full)
    while (launched_ < full_) launch(launched_, scale);
  return full_;
}

void Bucketer::launch(int bucket, double scale) {
  PYCOMM_CHECK(bucket == launched_ && bucket < static_cast<int>(buffers_.size()), "launch: bucket is ",
               bucket, "; expected ", launched_, ", the next in order");
  PYCOMM_CHECK(missing_[bucket] == 0, "launch: ", missing_[bucket], " slots of bucket ", bucket,
               " are not filled");
  works_.push_back(submit(reduction_of(bucket, scale)));
  ++launched_;
}

void Bucketer::flush(double scale) {
  check_open("flush");
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (filled_[i]) continue;
    const View place = buffers_[slot.bucket].slice(slot.offset, slot.count);
    if (place.count > 0) std::memset(place.data, 0, static_cast<std::size_t>(place.bytes()));
  }
  missing_.assign(buffers_.size(), 0);
  full_ = static_cast<int>(buffers_.size());
  while (launched_ < full_) launch(launched_, scale);
  anybody_ = std::make_shared<std::vector<std::uint8_t>>(filled_);
  const View bits{reinterpret_cast<std::byte*>(anybody_->data()), static_cast<std::int64_t>(anybody_->size()),
                  DType::u8};
  Call call;
  call.collective = Collective::all_reduce;
  call.input = call.output = bits;
  call.op = ReduceOp::max;
  works_.push_back(submit(std::move(call)));
}

void Bucketer::finish_round() {
  for (const auto& work : works_) PYCOMM_CHECK(work->done(), "finish_round: a bucket is still being reduced");
  PYCOMM_CHECK(anybody_ != nullptr, "finish_round: the round was not flushed");
  used_ = *anybody_;
  anybody_.reset();
  launched_ = 0;
  reset();
}

bool Bucketer::filled(int slot) const {
  PYCOMM_CHECK(slot >= 0 && slot < static_cast<int>(slots_.size()), "slot is ", slot, "; expected 0 to ",
               static_cast<int>(slots_.size()) - 1);
  return filled_[slot] != 0;
}

Call Bucketer::reduction_of(int bucket, double scale) const {
  Call call;
  call.collective = Collective::all_reduce;
  call.input = call.output = buffers_[bucket];
  call.op = options_.op;
  call.scale = scale;
  call.codec = options_.codec;
  call.algorithm = options_.algorithm;
  call.order = options_.order;
  call.bucket = bucket;
  return call;
}

std::shared_ptr<Work> Bucketer::submit(Call call) {
  call.soon = options_.soon;
  // Both the buckets and the bits must outlive the operation.
  call.keepalive =
      std::make_shared<std::pair<std::shared_ptr<void>, std::shared_ptr<void>>>(keepalive_, anybody_);
  return communicator_->submit(std::move(call));
}

}  // namespace pycomm
