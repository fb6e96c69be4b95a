#include "transport/shm_heap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace pycomm::shm {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kSmallest = std::size_t{1} << 20;
// All heaps of a node are mapped by each of its ranks; processes of x86-64 and arm64 have at least 2^47
// bytes.
constexpr std::size_t kAddressSpace = std::size_t{1} << 45;
// Smaller blocks keep their pages: giving them back, and having them anew, costs more than a copy.
constexpr std::size_t kGiveBack = std::size_t{1} << 20;

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

std::size_t rounded(std::size_t bytes, std::size_t to) {
  return (bytes + to - 1) / to * to;
}

}  // namespace

Mapping::Mapping(int fd, std::size_t bytes) : bytes_(bytes) {
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (data == MAP_FAILED)
    throw TransportError(text("cannot map ", bytes >> 20, " MB of shared memory: ", std::strerror(errno)));
  data_ = static_cast<std::byte*>(data);
}

Mapping::~Mapping() {
  munmap(data_, bytes_);
}

std::size_t Heap::choose_bytes(std::int64_t bytes, int ranks) {
  const auto memory = static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * page_bytes();
  std::size_t chosen = bytes > 0 ? static_cast<std::size_t>(bytes) : memory / 2;
  chosen = std::min(chosen, kAddressSpace / static_cast<std::size_t>(std::max(ranks, 1)));
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    chosen =
        std::min(chosen, static_cast<std::size_t>(limit.rlim_cur));  // beyond it the kernel would kill us
  const std::size_t lines =
      kSmallest * static_cast<std::size_t>(1 + ranks / 4);  // room for those to all peers
  return std::max(chosen / page_bytes() * page_bytes(), lines);
}

Heap::Heap(std::size_t bytes) : owner_(getpid()) {
  fd_ = memfd_create("pycomm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd_ < 0) throw TransportError(text("memfd_create failed: ", std::strerror(errno)));
  try {
    // Sealed: no process can make it shorter under the feet of the others.
    if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0 ||
        fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
      throw TransportError(
          text("cannot reserve ", bytes >> 20, " MB of shared memory: ", std::strerror(errno)));
    mapping_ = std::make_shared<Mapping>(fd_, bytes);
  } catch (...) {
    ::close(take_descriptor());
    throw;
  }
  holes_.emplace(0, bytes);
}

Heap::~Heap() {
  if (fd_ >= 0) ::close(fd_);
}

int Heap::take_descriptor() {
  return std::exchange(fd_, -1);
}

// First fit.
std::byte* Heap::allocate(std::size_t bytes) {
  const std::size_t size = rounded(std::max(bytes, kAlignment), kAlignment);
  if (size < bytes) return nullptr;  // it overflowed
  const std::lock_guard lock(mutex_);
  const auto hole = std::find_if(holes_.begin(), holes_.end(), [&](auto& h) { return h.second >= size; });
  if (hole == holes_.end()) return nullptr;
  const auto [offset, room] = *hole;
  holes_.erase(hole);
  if (room > size) holes_.emplace(offset + size, room - size);
  blocks_.emplace(offset, size);
  return mapping_->data() + offset;
}

void Heap::free(std::byte* memory) {
  if (getpid() != owner_) return;
  const std::lock_guard lock(mutex_);
  const auto block = blocks_.find(offset_of(memory));
  PYCOMM_DCHECK(block != blocks_.end());
  auto [offset, size] = *block;
  blocks_.erase(block);
  if (size >= kGiveBack) {
    const std::size_t first = rounded(offset, page_bytes()),
                      end = (offset + size) / page_bytes() * page_bytes();
    madvise(mapping_->data() + first, end - first, MADV_REMOVE);  // should it fail, the pages stay ours
  }
  const auto after = holes_.find(offset + size);
  if (after != holes_.end()) {
    size += after->second;
    holes_.erase(after);
  }
  const auto next = holes_.lower_bound(offset);
  if (next != holes_.begin() && std::prev(next)->first + std::prev(next)->second == offset)
    std::prev(next)->second += size;
  else
    holes_.emplace(offset, size);
}

std::size_t Heap::free_bytes() const {
  const std::lock_guard lock(mutex_);
  std::size_t bytes = 0;
  for (const auto& [offset, size] : holes_) bytes += size;
  return bytes;
}

void BlockCache::forget() {
  for (const auto& [size, blocks] : free_)
    for (std::byte* block : blocks) heap_->free(block);
  free_.clear();
  cached_bytes_ = 0;
}

// Powers of two, then whole megabytes.
std::size_t BlockCache::size_class(std::size_t bytes) {
  constexpr std::size_t step = std::size_t{1} << 20;
  return bytes <= step ? std::bit_ceil(std::max<std::size_t>(bytes, 4096)) : rounded(bytes, step);
}

std::byte* BlockCache::take(std::size_t bytes) {
  const std::size_t size = size_class(bytes);
  const auto cached = free_.find(size);
  std::byte* block = nullptr;
  if (cached != free_.end() && !cached->second.empty()) {
    block = cached->second.back();
    cached->second.pop_back();
    cached_bytes_ -= size;
  } else if (block = heap_->allocate(size); !block) {
    forget();  // blocks of other sizes
    block = heap_->allocate(size);
  }
  taken_ += block != nullptr;
  return block;
}

void BlockCache::give_back(std::byte* block, std::size_t bytes) {
  --taken_;
  const std::size_t size = size_class(bytes);
  if (cached_bytes_ + size > kCacheBytes) return heap_->free(block);
  free_[size].push_back(block);
  cached_bytes_ += size;
}

}  // namespace pycomm::shm
