#include "common/file_limit.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/log.h"

namespace sluice {
namespace {

constexpr rlim_t kMaxFiles = 1 << 20;  // the kernel's own usual bound; more need no hard limit

}  // namespace

int64_t RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kMaxFiles;
  const rlimit raised{std::max(limit.rlim_cur, std::min(limit.rlim_max, kMaxFiles)),
                      limit.rlim_max};
  if (raised.rlim_cur > limit.rlim_cur) {
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) {
      limit = raised;
    } else {
      SLUICE_LOG(Warning) << "cannot raise the limit on open files from " << limit.rlim_cur
                          << " to " << raised.rlim_cur << ": " << std::strerror(errno);
    }
  }
  return static_cast<int64_t>(std::min(limit.rlim_cur, kMaxFiles));
}

}  // namespace sluice
