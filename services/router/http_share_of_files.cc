#include "services/router/http_share_of_files.h"

#include <algorithm>

#include "common/log.h"

namespace sluice::router {
namespace {

constexpr int64_t kOtherFiles = 1024;  // workers, gRPC clients, logs

}  // namespace

int HttpShareOfFiles(int64_t max_files, int max_connections) {
  const int64_t left = std::max(max_files - kOtherFiles, max_files / 2);
  const int share = static_cast<int>(std::clamp<int64_t>(left, 1, std::max(max_connections, 1)));
  if (share < max_connections) {
    SLUICE_LOG(Warning) << "open files are limited to " << max_files << ": max_connections is "
                        << share << " instead of " << max_connections
                        << ", which leaves some to workers and gRPC clients";
  }
  return share;
}

}  // namespace sluice::router
