#include "cli/machine_share.h"

#include <algorithm>

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

WorkerShare ShareMachine(const Machine& machine, int num_workers) {
  const uint64_t workers = static_cast<uint64_t>(std::max(1, num_workers));
  WorkerShare share;
  share.threads = std::max(1, machine.num_cores / static_cast<int>(workers));
  share.kv_cache.bytes =
      std::clamp(machine.available_memory / 4 / workers, 64 * kMiB, 1024 * kMiB) / kMiB * kMiB;
  return share;
}

int PrefillNiceness(int num_threads, int num_cores) {
  return num_threads <= num_cores ? kLowestPriority : kLowerPriority;
}

}  // namespace sluice::cli
