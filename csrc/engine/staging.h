// Memory that operations borrow: wires, scratch slots. Blocks come back to a cache, because fresh pages cost
// more than the copy into them. Used by the driver only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace pycomm {

class Staging {
 public:
  class Block {
   public:
    Block() = default;
    Block(Staging* owner, std::byte* data, std::size_t bytes) : owner_(owner), data_(data), bytes_(bytes) {}
    Block(Block&& other) noexcept { *this = std::move(other); }
    Block& operator=(Block&& other) noexcept;
    ~Block() { release(); }

    std::byte* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }
    explicit operator bool() const { return data_ != nullptr; }

   private:
    void release();
    Staging* owner_ = nullptr;
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
  };

  // At least `bytes` long (never null), aligned to 64 bytes, uninitialised.
  Block take(std::int64_t bytes);

  // All blocks must have come back.
  ~Staging();

 private:
  static constexpr std::size_t kCacheBytes = std::size_t{512} << 20;
  std::array<std::vector<std::byte*>, 64> free_;  // by the exponent of the block size, a power of two
  std::size_t cached_bytes_ = 0;
};

}  // namespace pycomm
