// GET of a readiness probe on loopback. Any thread.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sluice::cli {

struct ProbeAnswer {
  int http_status = 0;
  std::string body;  // at most 4 KiB, without trailing white space
};

// GET http://127.0.0.1:`port``path`; UNAVAILABLE if nobody answers within `timeout`.
absl::StatusOr<ProbeAnswer> ProbeHttp(int port, const std::string& path, absl::Duration timeout);

}  // namespace sluice::cli
