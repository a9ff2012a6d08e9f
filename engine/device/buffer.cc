#include "engine/device/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace sluice {
namespace {

constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;

size_t RoundUp(size_t size_bytes, size_t unit) { return (size_bytes + unit - 1) / unit * unit; }

// Large memory comes from the kernel, which zeroes a page when it is first touched: by the threads
// that fill it, side by side, and on their NUMA node. It asks for huge pages: software and hardware
// prefetch stop at page boundaries, and small pages cost a fifth of the bandwidth.
void* MapLarge(size_t size_bytes) {
  const size_t wanted = RoundUp(size_bytes, kHugePage);
  void* const map =
      mmap(nullptr, wanted + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  uint8_t* const begin = static_cast<uint8_t*>(map);
  // The last aligned place, not the first: the next mapping then ends where this one begins, and
  // the kernel makes them one if both are whole huge pages (the end of others is advised otherwise,
  // so they take two). A process may have 65,530; V3 has half as many matrices of experts.
  const size_t skipped = kHugePage - reinterpret_cast<uintptr_t>(map) % kHugePage;
  munmap(begin, skipped);
  if (skipped < kHugePage) munmap(begin + skipped + wanted, kHugePage - skipped);
  uint8_t* const data = begin + skipped;
  madvise(data, size_bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // a hint
  return data;
}

void Free(void* data, size_t size_bytes) {
  if (size_bytes >= kHugePage) {
    munmap(data, RoundUp(size_bytes, kHugePage));
  } else {
    std::free(data);
  }
}

}  // namespace

Buffer::~Buffer() { Free(data_, size_bytes_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

void Buffer::Reserve(size_t size_bytes) {
  if (size_bytes <= size_bytes_) return;
  Free(std::exchange(data_, nullptr), std::exchange(size_bytes_, 0));
  const size_t rounded = RoundUp(size_bytes, kLine);
  if (rounded >= kHugePage) {
    data_ = MapLarge(rounded);
  } else {
    data_ = std::aligned_alloc(kLine, rounded);
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_, 0, rounded);
  }
  size_bytes_ = rounded;
}

}  // namespace sluice
