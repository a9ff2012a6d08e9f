#include "engine/device/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace sluice {

Buffer::~Buffer() { std::free(data_); }

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
  // Large buffers ask for huge pages: software and hardware prefetch stop at page boundaries, and
  // small pages cost a fifth of the bandwidth.
  constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;
  const size_t align = size_bytes >= kHugePage ? kHugePage : kLine;
  const size_t rounded = (size_bytes + kLine - 1) / kLine * kLine;
  std::free(data_);
  data_ = std::aligned_alloc(align, (rounded + align - 1) / align * align);
  if (data_ == nullptr) throw std::bad_alloc();
  if (align == kHugePage) madvise(data_, rounded / kHugePage * kHugePage, MADV_HUGEPAGE);  // a hint
  std::memset(data_, 0, rounded);
  size_bytes_ = rounded;
}

}  // namespace sluice
