// How much memory this process may still take. Any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

// The smaller of the kernel's MemAvailable and what the control group (a container's limit) leaves.
absl::StatusOr<int64_t> AvailableMemoryBytes();

// For tests: the same from the files' contents. Empty or "max": no limit.
absl::StatusOr<int64_t> ParseAvailableMemory(absl::string_view proc_meminfo,
                                             absl::string_view cgroup_memory_max,
                                             absl::string_view cgroup_memory_current);

}  // namespace sluice
