#include "cli/machine_share.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

#include "common/processors.h"

namespace sluice::cli {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

uint64_t MemAvailable() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string name;
    uint64_t kib = 0;
    if (fields >> name >> kib && name == "MemAvailable:") return kib * 1024;
  }
  return 0;
}

// What the container's limit leaves, cgroup v2.
uint64_t MemoryByLimit() {
  std::ifstream limit_file("/sys/fs/cgroup/memory.max");
  std::ifstream used_file("/sys/fs/cgroup/memory.current");
  uint64_t limit = 0;
  uint64_t used = 0;
  if (!(limit_file >> limit) || !(used_file >> used)) return ~uint64_t{0};
  return limit > used ? limit - used : 0;
}

}  // namespace

Machine ThisMachine() { return {AvailableProcessors(), std::min(MemAvailable(), MemoryByLimit())}; }

WorkerShare ShareMachine(const Machine& machine, int num_workers) {
  const uint64_t workers = static_cast<uint64_t>(std::max(1, num_workers));
  WorkerShare share;
  share.threads = std::max(1, machine.num_cores / static_cast<int>(workers));
  share.kv_cache.bytes =
      std::clamp(machine.available_memory / 4 / workers, 64 * kMiB, 1024 * kMiB) / kMiB * kMiB;
  return share;
}

}  // namespace sluice::cli
