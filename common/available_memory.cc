#include "common/available_memory.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sluice {
namespace {

std::string ReadFileOrEmpty(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The number behind `key` in lines of "key number"; nothing if there is no such line.
std::optional<int64_t> FindCount(absl::string_view stat, absl::string_view key) {
  for (const absl::string_view line : absl::StrSplit(stat, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    int64_t count = 0;
    if (words.size() == 2 && words[0] == key && absl::SimpleAtoi(words[1], &count)) return count;
  }
  return std::nullopt;
}

// Version 1 counts the group alone under the plain names, with its children under "total_"; its
// usage has the children in it. Version 2 has only the plain names, children included.
int64_t FileCacheBytes(absl::string_view stat) {
  int64_t bytes = 0;
  for (const absl::string_view key : {"inactive_file", "active_file"}) {
    std::optional<int64_t> count = FindCount(stat, absl::StrCat("total_", key));
    if (!count.has_value()) count = FindCount(stat, key);
    bytes += std::max<int64_t>(count.value_or(0), 0);
  }
  return bytes;
}

ControlGroupMemory ReadControlGroup() {
  ControlGroupMemory group = {ReadFileOrEmpty("/sys/fs/cgroup/memory.max"),
                              ReadFileOrEmpty("/sys/fs/cgroup/memory.current"),
                              ReadFileOrEmpty("/sys/fs/cgroup/memory.stat")};
  if (!group.limit.empty()) return group;
  return {ReadFileOrEmpty("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
          ReadFileOrEmpty("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
          ReadFileOrEmpty("/sys/fs/cgroup/memory/memory.stat")};
}

}  // namespace

absl::StatusOr<int64_t> ParseAvailableMemory(absl::string_view proc_meminfo,
                                             const ControlGroupMemory& group) {
  int64_t available = -1;
  for (const absl::string_view line : absl::StrSplit(proc_meminfo, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    int64_t kib = 0;
    if (words.size() == 3 && words[0] == "MemAvailable:" && words[2] == "kB" &&
        absl::SimpleAtoi(words[1], &kib)) {
      available = kib * 1024;
    }
  }
  if (available < 0) return absl::NotFoundError("/proc/meminfo has no MemAvailable");

  int64_t limit = 0;
  if (absl::SimpleAtoi(absl::StripAsciiWhitespace(group.limit), &limit)) {
    int64_t usage = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(group.usage), &usage)) usage = 0;
    const int64_t wanted = std::max<int64_t>(usage - FileCacheBytes(group.stat), 0);
    available = std::min(available, std::max<int64_t>(limit - wanted, 0));
  }
  return available;
}

absl::StatusOr<int64_t> AvailableMemoryBytes() {
  return ParseAvailableMemory(ReadFileOrEmpty("/proc/meminfo"), ReadControlGroup());
}

}  // namespace sluice
