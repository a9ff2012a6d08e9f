// A model folder's weights: one model.safetensors, or shards named by model.safetensors.index.json.
// Knows files and tensors, not what a model needs (deepseek_tensors.h does). Immutable; any thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/weights/safetensors.h"

namespace sluice {

// A tensor and the bytes behind it.
struct TensorView {
  const TensorInfo* info = nullptr;
  const SafetensorsFile* file = nullptr;
  const uint8_t* data = nullptr;
};

// Of a file's data section, in bytes.
struct FileRange {
  const SafetensorsFile* file = nullptr;
  uint64_t begin = 0;
  uint64_t end = 0;
};

class Checkpoint {
 public:
  // With an index, every shard must lie in the folder itself (no "..", "/" or link leading out of
  // it), and index and shards must name exactly the same tensors.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& model_dir);

  // Null if there is no such tensor.
  const TensorView* Find(const std::string& name) const;
  // Where the tensors lie whose names begin with `prefix`: in as few ranges as possible, in order.
  std::vector<FileRange> RangesOf(absl::string_view prefix) const;
  // Gives back the memory of what was read; it is read again if needed. Whoever copies a large
  // checkpoint calls this now and then, or the copy takes twice the memory.
  void ReleasePages() const;
  // All tensors, sorted by name: what `sluice inspect` prints.
  std::vector<TensorView> List() const;
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  const std::string& model_dir() const { return model_dir_; }

 private:
  explicit Checkpoint(std::string model_dir) : model_dir_(std::move(model_dir)) {}
  absl::Status OpenIndexed(const std::string& index_path);
  absl::Status AddFile(const std::string& path);

  const std::string model_dir_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  absl::flat_hash_map<std::string, TensorView> tensors_;
};

// Identifies the weights: SHA-256, in hex, over config.json, every file's header, and its payload:
// all of it for files up to 256 MiB, evenly spaced samples of larger ones.
absl::StatusOr<std::string> ModelDigest(const Checkpoint& checkpoint);

}  // namespace sluice
