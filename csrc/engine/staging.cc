#include "engine/staging.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

namespace pycomm {
namespace {

constexpr std::align_val_t kAlignment{64};

}  // namespace

Staging::Block& Staging::Block::operator=(Block&& other) noexcept {
  if (this == &other) return *this;
  release();
  owner_ = other.owner_;
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

void Staging::Block::release() {
  std::byte* data = std::exchange(data_, nullptr);
  if (!data) return;
  if (owner_->cached_bytes_ + bytes_ > kCacheBytes) {
    ::operator delete(data, kAlignment);
    return;
  }
  owner_->free_[std::countr_zero(bytes_)].push_back(data);
  owner_->cached_bytes_ += bytes_;
}

Staging::Block Staging::take(std::int64_t bytes) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(static_cast<std::size_t>(bytes), 256));
  auto& blocks = free_[std::countr_zero(size)];
  if (blocks.empty()) return Block(this, static_cast<std::byte*>(::operator new(size, kAlignment)), size);
  std::byte* data = blocks.back();
  blocks.pop_back();
  cached_bytes_ -= size;
  return Block(this, data, size);
}

Staging::~Staging() {
  for (auto& blocks : free_)
    for (std::byte* data : blocks) ::operator delete(data, kAlignment);
}

}  // namespace pycomm
