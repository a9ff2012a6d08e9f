#include "common/processors.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>

namespace sluice {
namespace {

int ByAffinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// "max 100000" or "200000 100000": microseconds of processor time in each period.
int ByCgroup(const std::string& cpu_max) {
  std::ifstream file(cpu_max);
  double quota = 0;
  double period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) {
    return std::numeric_limits<int>::max();
  }
  return static_cast<int>(std::clamp(quota / period, 1.0, 1e6));
}

}  // namespace

int AvailableProcessors(const std::string& cgroup_cpu_max) {
  return std::min(ByAffinity(), ByCgroup(cgroup_cpu_max));
}

}  // namespace sluice
