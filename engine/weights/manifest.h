// sluice-manifest.json: what every byte of a model folder that loading reads must be, and what the
// model must answer. Written beside the checkpoint by `sluice inspect MODEL --write-manifest`,
// checked when an engine loads it. Plain data and its file; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"
#include "modelspec/kv_layout.h"

namespace sluice {

inline constexpr char kManifestFile[] = "sluice-manifest.json";

// A greedy answer of the model to a short prompt, as the engine that wrote the manifest gave it.
struct GoldenAnswer {
  DType dtype = DType::kF32;  // that engine's precision
  std::vector<TokenId> prompt;
  std::vector<TokenId> output;   // [num_output_tokens], no stop tokens in force
  std::vector<double> logprobs;  // [num_output_tokens], of `output`
  std::vector<double> margins;   // [num_output_tokens], to the second best token's log-probability
  // How far a log-probability may be away, by the checking engine's precision. Where the margin is
  // below twice this, another token may be chosen; what follows it is not compared.
  double tolerance_f32 = 0;
  double tolerance_bf16 = 0;

  double Tolerance(DType of) const { return of == DType::kF32 ? tolerance_f32 : tolerance_bf16; }
};

// A file that is read whole: config.json and what belongs to the tokenizer.
struct ManifestFile {
  std::string name;
  uint64_t size_bytes = 0;
  std::string sha256;  // lower-case hex, as all digests here
};

struct ManifestShard {
  std::string name;
  uint64_t size_bytes = 0;
  std::string header_sha256;  // of the safetensors header without its length
  absl::btree_map<std::string, std::string> tensor_sha256;  // by tensor
};

struct Manifest {
  std::vector<ManifestFile> files;
  std::vector<ManifestShard> shards;
  bool has_golden = false;
  GoldenAnswer golden;
};

// INVALID_ARGUMENT names the field.
absl::StatusOr<Manifest> ParseManifest(absl::string_view text);

// NOT_FOUND: the folder has none. INVALID_ARGUMENT names the field.
absl::StatusOr<Manifest> ReadManifest(const std::string& model_dir);

// To a temporary name, flushed to disk and renamed: a reader sees all of it or what was there.
absl::Status WriteManifest(const std::string& model_dir, const Manifest& manifest);

// Which files of the folder the manifest speaks about, besides the shards.
std::vector<std::string> ManifestFileNames();

// What can be told without reading tensors: each file and shard is there with its size, the files
// and headers have their digests, and the folder has no other *.safetensors and none of the files
// of ManifestFileNames() that the manifest does not list. Names the file.
absl::Status CheckFilesAgainstManifest(const std::string& model_dir, const Manifest& manifest);

}  // namespace sluice
