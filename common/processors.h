// How many processors this process may keep busy: its CPU affinity and, in a container, the limit
// of its control group (cgroup v2). More threads than that are throttled, all of them at once and
// for most of each period. Any thread.
#pragma once

#include <string>

namespace sluice {

// At least 1; a limit of 2.5 processors counts as 2. `cgroup_cpu_max` is the control group's
// cpu.max, which a container finds at the top of its own tree; no such file means no limit.
int AvailableProcessors(const std::string& cgroup_cpu_max = "/sys/fs/cgroup/cpu.max");

}  // namespace sluice
