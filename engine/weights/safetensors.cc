#include "engine/weights/safetensors.h"

#include <fcntl.h>
#include <simdjson.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace sluice {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr uint64_t kLengthBytes = 8;

struct DTypeEntry {
  TensorDType dtype;
  const char* name;
  int bytes;
};
constexpr DTypeEntry kDTypes[] = {
    {TensorDType::kBool, "BOOL", 1},      {TensorDType::kU8, "U8", 1},
    {TensorDType::kI8, "I8", 1},          {TensorDType::kF8E4M3, "F8_E4M3", 1},
    {TensorDType::kF8E5M2, "F8_E5M2", 1}, {TensorDType::kF8E8M0, "F8_E8M0", 1},
    {TensorDType::kI16, "I16", 2},        {TensorDType::kU16, "U16", 2},
    {TensorDType::kF16, "F16", 2},        {TensorDType::kBF16, "BF16", 2},
    {TensorDType::kI32, "I32", 4},        {TensorDType::kU32, "U32", 4},
    {TensorDType::kF32, "F32", 4},        {TensorDType::kF64, "F64", 8},
    {TensorDType::kI64, "I64", 8},        {TensorDType::kU64, "U64", 8},
};

const DTypeEntry& Entry(TensorDType dtype) {
  return *std::find_if(std::begin(kDTypes), std::end(kDTypes),
                       [&](const DTypeEntry& entry) { return entry.dtype == dtype; });
}

absl::Status Bad(absl::string_view problem) { return absl::InvalidArgumentError(problem); }

// One entry of the header; errors lack file and tensor name, the caller adds them.
absl::Status ParseTensor(const simdjson::dom::element& value, uint64_t data_bytes,
                         TensorInfo* tensor) {
  simdjson::dom::object object;
  if (value.get(object)) return Bad("is not an object");
  absl::flat_hash_set<std::string> seen;
  bool has_dtype = false, has_shape = false, has_offsets = false;
  for (const auto& [key, field] : object) {
    if (!seen.insert(std::string(key)).second)
      return Bad(absl::StrCat("has '", std::string(key), "' twice"));
    if (key == "dtype") {
      std::string_view name;
      if (field.get(name)) return Bad("dtype is not a string");
      const auto* entry = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                       [&](const DTypeEntry& e) { return name == e.name; });
      if (entry == std::end(kDTypes)) {
        return Bad(absl::StrCat("unknown dtype '", std::string(name), "'"));
      }
      tensor->dtype = entry->dtype;
      has_dtype = true;
    } else if (key == "shape") {
      simdjson::dom::array shape;
      if (field.get(shape)) return Bad("shape is not an array");
      for (const simdjson::dom::element dim : shape) {
        uint64_t size;
        if (dim.get(size) || size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
          return Bad("shape holds something that is not a non-negative integer");
        }
        tensor->shape.push_back(static_cast<int64_t>(size));
      }
      has_shape = true;
    } else if (key == "data_offsets") {
      simdjson::dom::array offsets;
      if (field.get(offsets) || offsets.size() != 2 || offsets.at(0).get(tensor->begin) ||
          offsets.at(1).get(tensor->end)) {
        return Bad("data_offsets are not two non-negative integers");
      }
      has_offsets = true;
    } else {
      return Bad(absl::StrCat("has an unknown field '", std::string(key), "'"));
    }
  }
  if (!has_dtype || !has_shape || !has_offsets) return Bad("lacks dtype, shape or data_offsets");
  if (tensor->begin > tensor->end || tensor->end > data_bytes) {
    return Bad(absl::StrCat("data_offsets [", tensor->begin, ", ", tensor->end,
                            "] lie outside the data (", data_bytes, " bytes)"));
  }
  uint64_t bytes = static_cast<uint64_t>(TensorDTypeBytes(tensor->dtype));
  for (int64_t dim : tensor->shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) {
      return Bad(absl::StrCat("shape ", ShapeString(tensor->shape), " overflows"));
    }
  }
  if (bytes != tensor->end - tensor->begin) {
    return Bad(absl::StrCat("dtype ", TensorDTypeName(tensor->dtype), " and shape ",
                            ShapeString(tensor->shape), " need ", bytes,
                            " bytes, but data_offsets span ", tensor->end - tensor->begin));
  }
  return absl::OkStatus();
}

}  // namespace

const char* TensorDTypeName(TensorDType dtype) { return Entry(dtype).name; }
int64_t TensorDTypeBytes(TensorDType dtype) { return Entry(dtype).bytes; }

std::string ShapeString(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path));
  absl::Status status = file->Map();
  if (status.ok()) status = file->ParseHeader();
  if (status.ok()) status = file->CheckTiling();
  if (!status.ok()) return Annotate(status, path);
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_ != nullptr) munmap(const_cast<uint8_t*>(map_), size_bytes_);
}

void SafetensorsFile::WillRead(uint64_t begin, uint64_t end) const {
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = reinterpret_cast<uintptr_t>(data_ + begin) / kPage * kPage;
  const uintptr_t last = reinterpret_cast<uintptr_t>(data_ + end);
  madvise(reinterpret_cast<void*>(first), last - first, MADV_WILLNEED);  // a hint
}

void SafetensorsFile::ExpectRandomReads(bool random) const {
  madvise(const_cast<uint8_t*>(map_), size_bytes_, random ? MADV_RANDOM : MADV_NORMAL);  // a hint
}

void SafetensorsFile::ReleasePages() const {
  madvise(const_cast<uint8_t*>(map_), size_bytes_, MADV_DONTNEED);
}

absl::Status SafetensorsFile::Map() {
  const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string reason = std::strerror(errno);
    return errno == ENOENT ? absl::NotFoundError(reason) : absl::FailedPreconditionError(reason);
  }
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError("is not a regular file");
  }
  size_bytes_ = static_cast<uint64_t>(info.st_size);
  if (size_bytes_ < kLengthBytes) {
    close(fd);
    return Bad(absl::StrCat("has ", size_bytes_, " bytes, too short for a safetensors file"));
  }
  void* map = mmap(nullptr, size_bytes_, PROT_READ, MAP_SHARED, fd, 0);
  const std::string reason = std::strerror(errno);
  close(fd);
  if (map == MAP_FAILED) return absl::ResourceExhaustedError(absl::StrCat("mmap: ", reason));
  map_ = static_cast<const uint8_t*>(map);
  return absl::OkStatus();
}

absl::Status SafetensorsFile::ParseHeader() {
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | map_[i];
  if (header_bytes > kMaxHeaderBytes) {
    return Bad(
        absl::StrCat("header of ", header_bytes, " bytes is above the limit of ", kMaxHeaderBytes));
  }
  if (header_bytes > size_bytes_ - kLengthBytes) {
    return Bad(absl::StrCat("is truncated: header of ", header_bytes, " bytes in a file of ",
                            size_bytes_));
  }
  header_ = absl::string_view(reinterpret_cast<const char*>(map_ + kLengthBytes), header_bytes);
  data_ = map_ + kLengthBytes + header_bytes;
  data_bytes_ = size_bytes_ - kLengthBytes - header_bytes;

  const simdjson::padded_string json(header_.data(), header_.size());
  simdjson::dom::parser parser;
  simdjson::dom::object root;
  if (const simdjson::error_code error = parser.parse(json).get(root)) {
    return Bad(absl::StrCat("header is not a JSON object: ", simdjson::error_message(error)));
  }
  absl::flat_hash_set<std::string> names;
  for (const auto& [key, value] : root) {
    std::string name(key);
    if (!names.insert(name).second) return Bad(absl::StrCat("tensor '", name, "' appears twice"));
    if (name == "__metadata__") continue;
    TensorInfo tensor;
    tensor.name = name;
    SLUICE_RETURN_IF_ERROR(
        Annotate(ParseTensor(value, data_bytes_, &tensor), absl::StrCat("tensor '", name, "'")));
    tensors_.push_back(std::move(tensor));
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  return absl::OkStatus();
}

absl::Status SafetensorsFile::CheckTiling() const {
  uint64_t next = 0;
  for (const TensorInfo& tensor : tensors_) {
    if (tensor.begin < next) {
      return Bad(absl::StrCat("tensor '", tensor.name, "' overlaps the one before it"));
    }
    if (tensor.begin > next) {
      return Bad(absl::StrCat("a hole of ", tensor.begin - next, " bytes before tensor '",
                              tensor.name, "'"));
    }
    next = tensor.end;
  }
  if (next != data_bytes_) {
    return Bad(absl::StrCat(data_bytes_ - next, " bytes after the last tensor belong to none"));
  }
  return absl::OkStatus();
}

}  // namespace sluice
