// Aligned host memory of the engine: grows, never shrinks, is zero when it grows. Not thread-safe;
// the owner of a buffer decides who writes which part of it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "modelspec/kv_layout.h"

namespace sluice {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size_bytes) { Reserve(size_bytes); }
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least `size_bytes`, 64-byte aligned. When it has to grow, the contents are lost and all
  // zero.
  void Reserve(size_t size_bytes);

  void* data() { return data_; }
  const void* data() const { return data_; }
  template <typename T>
  T* as() {
    return static_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }
  size_t size_bytes() const { return size_bytes_; }

 private:
  void* data_ = nullptr;
  size_t size_bytes_ = 0;
};

// Columns of an activation row, padded so that a kernel may read whole vectors and matrix tiles.
constexpr int64_t kActivationAlign = 32;
constexpr int64_t PaddedColumns(int64_t columns) {
  return (columns + kActivationAlign - 1) / kActivationAlign * kActivationAlign;
}

// Inputs of matrix products: [rows, stride] in the compute dtype (f32 or bf16). Invariants:
//  1. stride is a multiple of 32 and columns that no operation writes are zero;
//  2. at least 32 rows more than asked for are readable, so a tile may overhang the last row.
class Activations {
 public:
  Activations() = default;
  // `parts` equal parts of `columns` a row (the heads), each padded by itself.
  Activations(DType dtype, int64_t columns, int64_t parts = 1)
      : dtype_(dtype),
        part_stride_(PaddedColumns(columns)),
        stride_(parts == 1 ? SpreadStride(part_stride_, dtype) : part_stride_ * parts) {}

  void ReserveRows(int64_t rows) {
    buffer_.Reserve(static_cast<size_t>((rows + 32) * stride_ * DTypeBytes(dtype_)));
  }
  void* data() { return buffer_.data(); }
  const void* data() const { return buffer_.data(); }
  int64_t stride() const { return stride_; }            // elements
  int64_t part_stride() const { return part_stride_; }  // elements
  DType dtype() const { return dtype_; }

 private:
  // Rows a multiple of 4 KiB apart would all compete for the same few lines of the first-level
  // cache, and a matrix tile is 16 rows.
  static int64_t SpreadStride(int64_t stride, DType dtype) {
    return stride * DTypeBytes(dtype) % 1024 == 0 ? stride + kActivationAlign : stride;
  }

  DType dtype_ = DType::kF32;
  int64_t part_stride_ = 0;
  int64_t stride_ = 0;
  Buffer buffer_;
};

}  // namespace sluice
