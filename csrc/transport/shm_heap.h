// The memory that a rank shares with the others of its node: one sparse file without a name, mapped once by
// each of them. It is reserved at init and charged page by page as it is touched; it is gone when the last
// process that has it is gone, however that one ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

namespace pycomm::shm {

// A file mapped to memory for as long as the object lives.
class Mapping {
 public:
  Mapping(int fd, std::size_t bytes);  // throws TransportError
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  bool contains(std::span<const std::byte> memory) const {
    return memory.data() >= data_ && memory.data() + memory.size() <= data_ + bytes_;
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Our own heap. Threads: any.
class Heap {
 public:
  // Half the machine's memory, unless `bytes` says otherwise; less where a world of so many ranks could not
  // map all heaps, or where files may not be that large.
  static std::size_t choose_bytes(std::int64_t bytes, int ranks);

  // Throws TransportError where the system has no such memory.
  explicit Heap(std::size_t bytes);
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  int take_descriptor();  // of the file, once: the caller owns it
  const std::shared_ptr<Mapping>& mapping() const { return mapping_; }
  std::uint64_t offset_of(const std::byte* memory) const {
    return static_cast<std::uint64_t>(memory - mapping_->data());
  }

  // Aligned to 64 bytes, uninitialised; null when there is no room.
  std::byte* allocate(std::size_t bytes);
  // Pages of a large block are given back to the system.
  void free(std::byte* memory);
  std::size_t free_bytes() const;

 private:
  const int owner_;  // process: a forked child frees nothing
  int fd_ = -1;
  std::shared_ptr<Mapping> mapping_;
  mutable std::mutex mutex_;
  std::map<std::size_t, std::size_t> holes_;   // offset and size; no two touch
  std::map<std::size_t, std::size_t> blocks_;  // the same of what is allocated
};

// Blocks for messages and operations, which come back to a cache: fresh pages cost more than the copy into
// them. Used by the driver only.
class BlockCache {
 public:
  explicit BlockCache(std::shared_ptr<Heap> heap) : heap_(std::move(heap)) {}
  ~BlockCache() { forget(); }
  std::byte* take(std::size_t bytes);  // null when the heap has no room
  void give_back(std::byte* block, std::size_t bytes);
  bool idle() const { return taken_ == 0; }  // all blocks have come back

 private:
  static std::size_t size_class(std::size_t bytes);
  void forget();

  static constexpr std::size_t kCacheBytes = std::size_t{512} << 20;
  const std::shared_ptr<Heap> heap_;
  std::map<std::size_t, std::vector<std::byte*>> free_;  // by size
  std::size_t cached_bytes_ = 0;
  std::size_t taken_ = 0;
};

}  // namespace pycomm::shm
