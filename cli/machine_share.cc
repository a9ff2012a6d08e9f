#include "cli/machine_share.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace sluice::cli {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

int CoresByAffinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// The container's limit, cgroup v2: "max 100000" or "200000 100000".
int CoresByQuota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0;
  double period = 0;
  if (!(file >> quota >> period) || period <= 0) return 1 << 20;
  return std::max(1, static_cast<int>(quota / period));
}

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

Machine ThisMachine() {
  return {std::min(CoresByAffinity(), CoresByQuota()), std::min(MemAvailable(), MemoryByLimit())};
}

WorkerShare ShareMachine(const Machine& machine, int num_workers) {
  const uint64_t workers = static_cast<uint64_t>(std::max(1, num_workers));
  WorkerShare share;
  share.threads = std::max(1, machine.num_cores / static_cast<int>(workers));
  share.kv_cache.bytes =
      std::clamp(machine.available_memory / 4 / workers, 64 * kMiB, 1024 * kMiB) / kMiB * kMiB;
  return share;
}

}  // namespace sluice::cli
