// Reads one safetensors file through a memory map: the header is checked completely on opening,
// payload bytes are touched only when used. Immutable after Open; any thread.
//
// Layout: u64 little-endian header length N, N bytes of JSON (possibly space-padded), then the
// data. Each tensor names dtype, shape and [begin, end) within the data; together they must tile
// it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace sluice {

enum class TensorDType {
  kBool,
  kU8,
  kI8,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64,
};
const char* TensorDTypeName(TensorDType dtype);  // as in the file: "BF16", "F8_E4M3", ...
int64_t TensorDTypeBytes(TensorDType dtype);

struct TensorInfo {
  std::string name;
  TensorDType dtype = TensorDType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // within the data section
  uint64_t end = 0;
};
std::string ShapeString(absl::Span<const int64_t> shape);  // "[4, 8]"

class SafetensorsFile {
 public:
  // NOT_FOUND, or INVALID_ARGUMENT naming file and tensor. A file must not be truncated while it is
  // open: the kernel then raises SIGBUS on access.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_bytes_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in order of their data
  // [end - begin], possibly unaligned.
  const uint8_t* Data(const TensorInfo& tensor) const { return data_ + tensor.begin; }
  absl::string_view header() const { return header_; }
  // Asks the system to begin reading bytes [begin, end) of the data section, or as many of them as
  // it reads at once. Waits only while the device's queue is full.
  void WillRead(uint64_t begin, uint64_t end) const;
  // Whether reads of single places follow: otherwise the system reads on behind each, megabytes.
  void ExpectRandomReads(bool random) const;
  // Unmaps the file's pages; they are read again if needed.
  void ReleasePages() const;

 private:
  explicit SafetensorsFile(std::string path) : path_(std::move(path)) {}
  absl::Status Map();
  absl::Status ParseHeader();
  absl::Status CheckTiling() const;

  const std::string path_;
  const uint8_t* map_ = nullptr;
  uint64_t size_bytes_ = 0;
  absl::string_view header_;
  const uint8_t* data_ = nullptr;
  uint64_t data_bytes_ = 0;
  std::vector<TensorInfo> tensors_;
};

}  // namespace sluice
