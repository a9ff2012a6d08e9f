#include "cli/machine_share.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_format.h"
#include "common/available_memory.h"
#include "common/processors.h"

namespace sluice::cli {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr int kLowestPriority = 19;
constexpr int kLowerPriority = 5;

}  // namespace

Machine ThisMachine() {
  const int64_t memory = AvailableMemoryBytes().value_or(0);
  return {AvailableProcessors(), static_cast<uint64_t>(memory)};
}

WorkerShare ShareMachine(const Machine& machine, int num_workers, uint64_t weight_bytes) {
  const uint64_t workers = static_cast<uint64_t>(std::max(1, num_workers));
  const uint64_t left =
      machine.available_memory - std::min(machine.available_memory, workers * weight_bytes);
  WorkerShare share;
  share.threads = std::max(1, machine.num_cores / static_cast<int>(workers));
  share.kv_cache.bytes = std::clamp(left / 4 / workers, 64 * kMiB, 1024 * kMiB) / kMiB * kMiB;
  return share;
}

absl::Status CheckMemory(const Machine& machine, int num_workers, uint64_t weight_bytes,
                         ByteSize kv_cache_per_worker) {
  const uint64_t worker_bytes = weight_bytes + kv_cache_per_worker.bytes;
  const uint64_t available = machine.available_memory;
  if (worker_bytes <= available / static_cast<uint64_t>(num_workers)) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%s %.2f GB for the weights and %.2f GB for KV blocks, but %.2f GB of memory are "
      "available%s",
      num_workers == 1 ? "a worker needs"
                       : absl::StrFormat("each of %d workers needs", num_workers),
      static_cast<double>(weight_bytes) / 1e9, static_cast<double>(kv_cache_per_worker.bytes) / 1e9,
      static_cast<double>(available) / 1e9,
      num_workers > 1 && worker_bytes <= available ? "; `--both 1` runs one worker" : ""));
}

int PrefillNiceness(int num_threads, int num_cores) {
  return num_threads <= num_cores ? kLowestPriority : kLowerPriority;
}

}  // namespace sluice::cli
