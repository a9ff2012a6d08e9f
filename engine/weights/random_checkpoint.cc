#include "engine/weights/random_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "engine/device/bf16.h"
#include "engine/device/thread_pool.h"
#include "engine/weights/deepseek_tensors.h"
#include "engine/weights/safetensors.h"

namespace sluice {
namespace {

constexpr int64_t kChunkElements = int64_t{1} << 20;  // what one thread fills at a time

struct RandomTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorDType dtype = TensorDType::kBF16;

  int64_t elements() const {
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    return n;
  }
  uint64_t bytes() const { return static_cast<uint64_t>(elements() * TensorDTypeBytes(dtype)); }
};

std::vector<RandomTensor> TensorsOf(const ModelSpec& spec) {
  std::vector<RandomTensor> tensors;
  for (const ExpectedTensor& expected : ExpectedTensors(spec)) {
    const bool bias = absl::EndsWith(expected.name, "e_score_correction_bias");
    tensors.push_back(
        {expected.name, expected.shape, bias ? TensorDType::kF32 : TensorDType::kBF16});
  }
  return tensors;
}

uint64_t Mix(uint64_t x) {  // SplitMix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t HashName(const std::string& name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

// Elements [begin, begin + count) of a matrix; `begin` is a multiple of 4.
void FillUniform(uint64_t key, double deviation, int64_t begin, int64_t count, Bf16* out) {
  // Uniform on [-a, a] has the deviation a / sqrt(3).
  const float step = static_cast<float>(deviation * std::sqrt(3.0) / 32768);
  for (int64_t i = 0; i < count; i += 4) {
    uint64_t bits = Mix(key + static_cast<uint64_t>((begin + i) / 4));
    for (int64_t j = i; j < std::min(i + 4, count); ++j, bits >>= 16) {
      out[j] = FloatToBf16(static_cast<float>(static_cast<int16_t>(bits & 0xffff)) * step);
    }
  }
}

// A file written from front to back.
class Writer {
 public:
  static absl::StatusOr<std::unique_ptr<Writer>> Create(const std::string& path) {
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) return absl::ErrnoToStatus(errno, path);
    return std::unique_ptr<Writer>(new Writer(path, fd));
  }
  ~Writer() { close(fd_); }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  absl::Status Write(const void* data, size_t size) {
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t written = write(fd_, at, size);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return absl::ErrnoToStatus(errno, path_);
      at += written;
      size -= static_cast<size_t>(written);
    }
    return absl::OkStatus();
  }

 private:
  Writer(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  const std::string path_;
  const int fd_;
};

std::string Header(const std::vector<RandomTensor>& tensors, size_t begin, size_t end) {
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (size_t i = begin; i < end; ++i) {
    header[tensors[i].name] = {{"dtype", TensorDTypeName(tensors[i].dtype)},
                               {"shape", tensors[i].shape},
                               {"data_offsets", {offset, offset + tensors[i].bytes()}}};
    offset += tensors[i].bytes();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // the data begins aligned
  return text;
}

class CheckpointWriter {
 public:
  CheckpointWriter(const ModelSpec& spec, const RandomCheckpointOptions& options)
      : options_(options),
        tensors_(TensorsOf(spec)),
        total_bytes_(RandomCheckpointBytes(spec)),
        pool_(options.num_threads),
        chunk_(static_cast<size_t>(kChunkElements * pool_.num_threads())) {}

  absl::Status WriteAll() {
    std::vector<size_t> shard_begins = {0};
    uint64_t shard_bytes = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (shard_bytes > 0 && shard_bytes + tensors_[i].bytes() > options_.max_shard_bytes) {
        shard_begins.push_back(i);
        shard_bytes = 0;
      }
      shard_bytes += tensors_[i].bytes();
    }
    shard_begins.push_back(tensors_.size());
    const size_t shards = shard_begins.size() - 1;
    nlohmann::ordered_json weight_map;
    for (size_t shard = 0; shard < shards; ++shard) {
      const std::string name = absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, shards);
      for (size_t i = shard_begins[shard]; i < shard_begins[shard + 1]; ++i) {
        weight_map[tensors_[i].name] = name;
      }
      SLUICE_RETURN_IF_ERROR(WriteShard(name, shard_begins[shard], shard_begins[shard + 1]));
    }
    const std::string index = nlohmann::ordered_json({{"metadata", {{"total_size", total_bytes_}}},
                                                      {"weight_map", weight_map}})
                                  .dump(1);
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Writer> writer,
                            Writer::Create(options_.dir + "/model.safetensors.index.json"));
    return writer->Write(index.data(), index.size());
  }

 private:
  absl::Status WriteShard(const std::string& name, size_t begin, size_t end) {
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Writer> writer,
                            Writer::Create(absl::StrCat(options_.dir, "/", name)));
    const std::string header = Header(tensors_, begin, end);
    const uint64_t length = header.size();  // little-endian, as every processor that we run on
    SLUICE_RETURN_IF_ERROR(writer->Write(&length, sizeof(length)));
    SLUICE_RETURN_IF_ERROR(writer->Write(header.data(), header.size()));
    for (size_t i = begin; i < end; ++i) SLUICE_RETURN_IF_ERROR(WriteTensor(tensors_[i], *writer));
    return absl::OkStatus();
  }

  absl::Status WriteTensor(const RandomTensor& tensor, Writer& writer) {
    if (tensor.dtype == TensorDType::kF32) {
      const std::vector<float> zeros(static_cast<size_t>(tensor.elements()));
      written_bytes_ += tensor.bytes();
      return writer.Write(zeros.data(), tensor.bytes());
    }
    const uint64_t key = Mix(options_.seed ^ HashName(tensor.name));
    const double deviation = 1 / std::sqrt(static_cast<double>(tensor.shape.back()));
    const bool norm = tensor.shape.size() == 1;
    for (int64_t begin = 0; begin < tensor.elements();) {
      const int64_t count =
          std::min(tensor.elements() - begin, static_cast<int64_t>(chunk_.size()));
      const int64_t tasks = (count + kChunkElements - 1) / kChunkElements;
      pool_.ParallelFor(static_cast<int>(tasks), [&](int task, int) {
        const int64_t first = task * kChunkElements;
        const int64_t part = std::min(kChunkElements, count - first);
        if (norm) {
          std::fill_n(chunk_.data() + first, part, FloatToBf16(1.0f));
        } else {
          FillUniform(key, deviation, begin + first, part, chunk_.data() + first);
        }
      });
      SLUICE_RETURN_IF_ERROR(
          writer.Write(chunk_.data(), static_cast<size_t>(count) * sizeof(Bf16)));
      begin += count;
      written_bytes_ += static_cast<uint64_t>(count) * sizeof(Bf16);
      if (options_.on_progress) {
        options_.on_progress(static_cast<double>(written_bytes_) /
                             static_cast<double>(total_bytes_));
      }
    }
    return absl::OkStatus();
  }

  const RandomCheckpointOptions& options_;
  const std::vector<RandomTensor> tensors_;
  const uint64_t total_bytes_;
  ThreadPool pool_;
  std::vector<Bf16> chunk_;
  uint64_t written_bytes_ = 0;
};

}  // namespace

uint64_t RandomCheckpointBytes(const ModelSpec& spec) {
  uint64_t bytes = 0;
  for (const RandomTensor& tensor : TensorsOf(spec)) bytes += tensor.bytes();
  return bytes;
}

absl::Status WriteRandomCheckpoint(const ModelSpec& spec, const RandomCheckpointOptions& options) {
  if (!spec.quantization.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "random checkpoints are bf16, and config.json says '", spec.quantization, "'"));
  }
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(options.dir, error);
  if (error) return absl::NotFoundError(absl::StrCat(options.dir, ": ", error.message()));
  const uint64_t bytes = RandomCheckpointBytes(spec);
  if (bytes + (bytes >> 6) > space.available) {
    return absl::ResourceExhaustedError(absl::StrCat(options.dir, ": the weights take ", bytes,
                                                     " bytes, and only ", space.available,
                                                     " are free"));
  }
  return CheckpointWriter(spec, options).WriteAll();
}

}  // namespace sluice
