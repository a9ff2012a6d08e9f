#include "services/router/file_limit.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/log.h"

namespace sluice::router {
namespace {

constexpr rlim_t kMaxFiles = 1 << 20;  // the kernel's own usual bound; more need no hard limit
constexpr int64_t kOtherFiles = 1024;  // workers, gRPC clients, logs

}  // namespace

int HttpShareOfFiles(int64_t max_files, int max_connections) {
  const int64_t share = std::max(max_files - kOtherFiles, max_files / 2);
  return static_cast<int>(std::clamp<int64_t>(share, 1, std::max(max_connections, 1)));
}

int RaiseFileLimit(int max_connections) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return max_connections;
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
  const int share =
      HttpShareOfFiles(static_cast<int64_t>(std::min(limit.rlim_cur, kMaxFiles)), max_connections);
  if (share < max_connections) {
    SLUICE_LOG(Warning) << "open files are limited to " << limit.rlim_cur << " (hard limit "
                        << limit.rlim_max << "): max_connections is " << share << " instead of "
                        << max_connections << ", which leaves some to workers and gRPC clients";
  }
  return share;
}

}  // namespace sluice::router
