// How much memory this process may still take. Any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

// The smaller of the kernel's MemAvailable and what the control group (a container's limit) leaves.
absl::StatusOr<int64_t> AvailableMemoryBytes();

// A control group's files, version 2 or 1.
struct ControlGroupMemory {
  std::string limit;  // memory.max or memory.limit_in_bytes; empty or "max": no limit
  std::string usage;  // memory.current or memory.usage_in_bytes
  std::string stat;   // memory.stat
};

// For tests: the same from the files' contents. File pages in the group's cache count as free, as
// they do in MemAvailable: reading a checkpoint fills the cache up to the limit, and the kernel
// takes those pages back when they are wanted.
absl::StatusOr<int64_t> ParseAvailableMemory(absl::string_view proc_meminfo,
                                             const ControlGroupMemory& group);

}  // namespace sluice
