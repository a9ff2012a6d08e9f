#include "engine/device/buffer.h"

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
  constexpr size_t kAlign = 64;
  const size_t rounded = (size_bytes + kAlign - 1) / kAlign * kAlign;
  std::free(data_);
  data_ = std::aligned_alloc(kAlign, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, rounded);
  size_bytes_ = rounded;
}

}  // namespace sluice
