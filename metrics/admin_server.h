// The admin port of every Sluice process: GET /livez /readyz /startupz /metrics and what pages the
// program adds, plain HTTP/1.1, one thread, loopback unless told otherwise. Bounded: 64
// connections, 16 KiB of headers, 5 s for each request, answer and idle pause.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "metrics/metrics.h"

namespace sluice {

struct AdminOptions {
  std::string host = "127.0.0.1";  // an IP address, or "localhost"
  int port = 0;                    // 0: any free port
};

// Each probe answers 200 "ok" when it returns "" and 503 with the reason otherwise. Called on the
// admin thread; must be quick and thread-safe.
struct AdminProbes {
  std::function<std::string()> live;
  std::function<std::string()> ready;
  std::function<std::string()> started;
};

// More pages by path, each one JSON object; a status is answered as 503. Called as the probes are.
using AdminPages = std::map<std::string, std::function<absl::StatusOr<std::string>()>>;

class AdminServer {
 public:
  virtual ~AdminServer() = default;  // stops and joins

  // `registry` must outlive the server. An address in use is named in the error.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(const AdminOptions& options,
                                                            MetricsRegistry* registry,
                                                            AdminProbes probes,
                                                            AdminPages pages = {});
  virtual int port() const = 0;
};

}  // namespace sluice
