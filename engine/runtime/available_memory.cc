#include "engine/runtime/available_memory.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace sluice {
namespace {

std::string ReadFileOrEmpty(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

absl::StatusOr<int64_t> ParseAvailableMemory(absl::string_view proc_meminfo,
                                             absl::string_view cgroup_memory_max,
                                             absl::string_view cgroup_memory_current) {
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
  if (absl::SimpleAtoi(absl::StripAsciiWhitespace(cgroup_memory_max), &limit)) {
    int64_t current = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(cgroup_memory_current), &current)) current = 0;
    available = std::min(available, std::max<int64_t>(limit - current, 0));
  }
  return available;
}

absl::StatusOr<int64_t> AvailableMemoryBytes() {
  return ParseAvailableMemory(ReadFileOrEmpty("/proc/meminfo"),
                              ReadFileOrEmpty("/sys/fs/cgroup/memory.max"),
                              ReadFileOrEmpty("/sys/fs/cgroup/memory.current"));
}

}  // namespace sluice
