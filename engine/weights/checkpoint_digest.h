// Digests of a checkpoint's tensors: making a manifest of them, and holding a checkpoint against
// one while it is being packed. Hashing runs on threads of its own, one tensor at a time each.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/weights/checkpoint.h"
#include "engine/weights/manifest.h"

namespace sluice {

// Everything of a manifest but the golden answer. `on_progress` (may be null) hears 0..1 on the
// calling thread a few times a second. Runs at the speed of the disk or of `num_threads` cores.
absl::StatusOr<Manifest> DigestCheckpoint(const Checkpoint& checkpoint, int num_threads,
                                          const std::function<void(double)>& on_progress);

class CheckpointVerifier {
 public:
  // FAILED_PRECONDITION, naming the shard: shards or headers differ. Otherwise the tensors are read
  // from now on, in the background. Both arguments outlive the result.
  static absl::StatusOr<std::unique_ptr<CheckpointVerifier>> Start(const Checkpoint& checkpoint,
                                                                   const Manifest& manifest,
                                                                   int num_threads);
  ~CheckpointVerifier();  // stops
  CheckpointVerifier(const CheckpointVerifier&) = delete;
  CheckpointVerifier& operator=(const CheckpointVerifier&) = delete;

  // Some tensor differs: Finish will say so, the rest need not be read.
  bool failed() const { return stop_.load(std::memory_order_relaxed); }
  // Waits. FAILED_PRECONDITION names shard and tensor.
  absl::Status Finish();

 private:
  struct Item {
    const SafetensorsFile* file = nullptr;
    const TensorInfo* tensor = nullptr;
    const std::string* sha256 = nullptr;
  };

  CheckpointVerifier() = default;
  void HashTensors();

  std::vector<Item> items_;  // constant once the threads run
  std::atomic<size_t> next_item_{0};
  std::atomic<bool> stop_{false};
  absl::Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
};

}  // namespace sluice
