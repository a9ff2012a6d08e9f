// GET of a process's admin port: readiness probes and small pages. Any thread.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sluice::cli {

struct ProbeAnswer {
  int http_status = 0;
  std::string body;  // at most 256 KiB, without trailing white space
};

// GET http://127.0.0.1:`port``path`; UNAVAILABLE if nobody answers within `timeout`.
absl::StatusOr<ProbeAnswer> ProbeHttp(int port, const std::string& path, absl::Duration timeout);
// The same of `address`, "10.0.0.7:9000" or "[fd00::7]:9000": an IP address or "localhost", as
// admin_host is.
absl::StatusOr<ProbeAnswer> ProbeHttpAt(const std::string& address, const std::string& path,
                                        absl::Duration timeout);

}  // namespace sluice::cli
