#include "engine/weights/checkpoint_digest.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/monotonic_cond_var.h"
#include "common/read_file.h"
#include "engine/weights/sha256.h"

namespace sluice {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);
// A piece at a time, so that a stop takes effect within a large tensor too.
constexpr uint64_t kPieceBytes = uint64_t{16} << 20;
constexpr size_t kMaxFileBytes = size_t{256} << 20;  // of those beside the weights

std::string ShardName(const SafetensorsFile& file) {
  return std::filesystem::path(file.path()).filename().string();
}

// "" when `stop` was set on the way.
std::string HashTensor(const SafetensorsFile& file, const TensorInfo& tensor,
                       const std::atomic<bool>& stop) {
  Sha256 sha;
  const uint8_t* const data = file.Data(tensor);
  const uint64_t size_bytes = tensor.end - tensor.begin;
  for (uint64_t begin = 0; begin < size_bytes; begin += kPieceBytes) {
    if (stop.load(std::memory_order_relaxed)) return "";
    sha.Add(data + begin, std::min(kPieceBytes, size_bytes - begin));
  }
  return sha.Hex();
}

absl::Status Differs(absl::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat(what, " differs from ", kManifestFile,
                   ": the file is damaged, or the manifest is another's"));
}

absl::StatusOr<std::vector<ManifestFile>> DigestFiles(const std::string& model_dir) {
  std::vector<ManifestFile> files;
  for (const std::string& name : ManifestFileNames()) {
    const absl::StatusOr<std::string> text =
        ReadFile(absl::StrCat(model_dir, "/", name), kMaxFileBytes);
    if (absl::IsNotFound(text.status())) continue;  // only config.json is required: loading says so
    if (!text.ok()) return text.status();
    files.push_back({name, text->size(), Sha256Hex(*text)});
  }
  return files;
}

}  // namespace

absl::StatusOr<Manifest> DigestCheckpoint(const Checkpoint& checkpoint, int num_threads,
                                          const std::function<void(double)>& on_progress) {
  Manifest manifest;
  absl::StatusOr<std::vector<ManifestFile>> files = DigestFiles(checkpoint.model_dir());
  if (!files.ok()) return files.status();
  manifest.files = *std::move(files);

  struct Item {
    const SafetensorsFile* file;
    const TensorInfo* tensor;
    std::string* sha256;
  };
  std::vector<Item> items;
  uint64_t total_bytes = 1;
  manifest.shards.resize(checkpoint.files().size());
  for (size_t i = 0; i < checkpoint.files().size(); ++i) {
    const SafetensorsFile& file = *checkpoint.files()[i];
    ManifestShard& shard = manifest.shards[i];
    shard.name = ShardName(file);
    shard.size_bytes = file.size_bytes();
    shard.header_sha256 = Sha256Hex(file.header());
    for (const TensorInfo& tensor : file.tensors()) {
      shard.tensor_sha256[tensor.name];
      total_bytes += tensor.end - tensor.begin;
    }
    // Pointers into the map only once it has stopped growing.
    for (const TensorInfo& tensor : file.tensors()) {
      items.push_back({&file, &tensor, &shard.tensor_sha256[tensor.name]});
    }
  }

  const std::atomic<bool> never{false};
  std::atomic<size_t> next_item{0};
  std::atomic<uint64_t> hashed_bytes{0};
  absl::Mutex mu;
  MonotonicCondVar ended_signal;
  int num_running = std::max(num_threads, 1);
  std::vector<std::thread> threads;
  for (int i = std::max(num_threads, 1); i > 0; --i) {
    threads.emplace_back([&] {
      for (size_t item; (item = next_item.fetch_add(1)) < items.size();) {
        *items[item].sha256 = HashTensor(*items[item].file, *items[item].tensor, never);
        hashed_bytes += items[item].tensor->end - items[item].tensor->begin;
      }
      absl::MutexLock lock(&mu);
      if (--num_running == 0) ended_signal.SignalAll();
    });
  }
  const absl::Condition all_ended(
      +[](int* running) { return *running == 0; }, &num_running);
  for (bool ended = false; !ended;) {
    {
      absl::MutexLock lock(&mu);
      ended = ended_signal.Await(&mu, all_ended, kProgressInterval);
    }
    if (on_progress) {
      on_progress(static_cast<double>(hashed_bytes.load()) / static_cast<double>(total_bytes));
    }
  }
  for (std::thread& thread : threads) thread.join();
  return manifest;
}

absl::StatusOr<std::unique_ptr<CheckpointVerifier>> CheckpointVerifier::Start(
    const Checkpoint& checkpoint, const Manifest& manifest, int num_threads) {
  std::unique_ptr<CheckpointVerifier> verifier(new CheckpointVerifier);
  for (const auto& file : checkpoint.files()) {
    const std::string name = ShardName(*file);
    const auto shard = std::find_if(manifest.shards.begin(), manifest.shards.end(),
                                    [&name](const ManifestShard& s) { return s.name == name; });
    if (shard == manifest.shards.end()) return Differs(absl::StrCat(name, ": the list of shards"));
    if (Sha256Hex(file->header()) != shard->header_sha256) {
      return Differs(absl::StrCat(name, ": the header"));
    }
    for (const TensorInfo& tensor : file->tensors()) {
      const auto sha256 = shard->tensor_sha256.find(tensor.name);
      if (sha256 == shard->tensor_sha256.end()) {
        return Differs(absl::StrCat(name, ": tensor '", tensor.name, "' is not listed and"));
      }
      verifier->items_.push_back({file.get(), &tensor, &sha256->second});
    }
  }
  if (checkpoint.files().size() != manifest.shards.size()) {
    return Differs("model.safetensors.index.json: the list of shards");
  }
  for (int i = std::max(num_threads, 1); i > 0; --i) {
    verifier->threads_.emplace_back([raw = verifier.get()] { raw->HashTensors(); });
  }
  return verifier;
}

CheckpointVerifier::~CheckpointVerifier() {
  stop_.store(true);
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void CheckpointVerifier::HashTensors() {
  for (size_t i; (i = next_item_.fetch_add(1)) < items_.size();) {
    const Item& item = items_[i];
    const std::string sha256 = HashTensor(*item.file, *item.tensor, stop_);
    if (sha256.empty()) return;
    if (sha256 == *item.sha256) continue;
    absl::MutexLock lock(&mu_);
    if (status_.ok()) {
      status_ = Differs(absl::StrCat(item.file->path(), ": tensor '", item.tensor->name, "'"));
    }
    stop_.store(true);
    return;
  }
}

absl::Status CheckpointVerifier::Finish() {
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  absl::MutexLock lock(&mu_);
  return status_;
}

}  // namespace sluice
