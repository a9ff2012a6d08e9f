// What the kernel knows about this process, under the names every Prometheus client library uses.
#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "metrics/metrics.h"

namespace sluice {
namespace {

std::string ReadProcFile(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Fields of /proc/self/stat from the third (state) on; the second, the program's name, may hold
// anything, a closing parenthesis included.
std::vector<std::string> StatFields() {
  const std::string stat = ReadProcFile("/proc/self/stat");
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return {};
  return absl::StrSplit(stat.substr(name_end + 1), absl::ByAnyChar(" \n"), absl::SkipEmpty());
}

// Field `number` as proc(5) counts them, 0 when it cannot be read.
double StatField(const std::vector<std::string>& fields, size_t number) {
  const size_t index = number - 3;
  double value = 0;
  return index < fields.size() && absl::SimpleAtod(fields[index], &value) ? value : 0;
}

double BootTimeSeconds() {
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(ReadProcFile("/proc/stat"), '\n'))) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    double seconds = 0;
    if (words.size() == 2 && words[0] == "btime" && absl::SimpleAtod(words[1], &seconds)) {
      return seconds;
    }
  }
  return 0;
}

double CpuSeconds() {
  timespec time = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double NumOpenFds() {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 0;
  int count = 0;
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count - 3;  // ".", ".." and the directory itself
}

}  // namespace

void AddProcessMetrics(MetricsRegistry* registry, const std::string& version) {
  registry
      ->AddGauge("sluice_build_info", "Constant 1; the version is the label.",
                 {{"version", version}})
      ->Set(1);
  Counter* cpu =
      registry->AddCounter("process_cpu_seconds_total", "User and system CPU time, in seconds.");
  Gauge* resident =
      registry->AddGauge("process_resident_memory_bytes", "Resident memory, in bytes.");
  Gauge* virtual_memory =
      registry->AddGauge("process_virtual_memory_bytes", "Virtual memory, in bytes.");
  Gauge* open_fds = registry->AddGauge("process_open_fds", "Open file descriptors.");
  Gauge* max_fds = registry->AddGauge("process_max_fds", "Limit on open file descriptors.");
  Gauge* threads = registry->AddGauge("process_threads", "Threads.");
  Gauge* start_time = registry->AddGauge("process_start_time_seconds",
                                         "Start of the process, in seconds since the Unix epoch.");

  // Field numbers of /proc/self/stat, see proc(5).
  constexpr size_t kNumThreads = 20, kStartTime = 22, kVirtualBytes = 23, kResidentPages = 24;
  start_time->Set(BootTimeSeconds() +
                  StatField(StatFields(), kStartTime) / static_cast<double>(sysconf(_SC_CLK_TCK)));
  registry->OnCollect([=] {
    const std::vector<std::string> fields = StatFields();
    cpu->Increment(CpuSeconds() - cpu->Value());
    resident->Set(StatField(fields, kResidentPages) * static_cast<double>(sysconf(_SC_PAGESIZE)));
    virtual_memory->Set(StatField(fields, kVirtualBytes));
    threads->Set(StatField(fields, kNumThreads));
    open_fds->Set(NumOpenFds());
    rlimit limit = {};
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) max_fds->Set(static_cast<double>(limit.rlim_cur));
  });
}

}  // namespace sluice
