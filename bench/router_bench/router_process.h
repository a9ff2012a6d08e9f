// The router under test: a child of the benchmark, watched through /proc. Main thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sluice::bench {

class RouterProcess {
 public:
  // Starts `program` with `args` on free ports and waits until it listens.
  static absl::StatusOr<std::unique_ptr<RouterProcess>> Start(const std::string& program,
                                                              std::vector<std::string> args);
  ~RouterProcess();  // SIGTERM, then SIGKILL
  RouterProcess(const RouterProcess&) = delete;
  RouterProcess& operator=(const RouterProcess&) = delete;

  // Until it answers /readyz with 200: it has heard of a ready worker.
  absl::Status AwaitReady() const;

  int http_port() const { return http_port_; }
  int fleet_port() const { return fleet_port_; }
  pid_t pid() const { return pid_; }

  struct Usage {
    double user_seconds = 0;
    double system_seconds = 0;
    int64_t resident_bytes = 0;
    double cpu_seconds() const { return user_seconds + system_seconds; }
  };
  // Since its start, all threads. UNAVAILABLE when it has gone.
  absl::StatusOr<Usage> ReadUsage() const;

 private:
  RouterProcess() = default;
  absl::Status AwaitPorts(const std::string& port_file);

  pid_t pid_ = -1;
  int http_port_ = 0;
  int fleet_port_ = 0;
};

// Lets this process and its children open as many files as the hard limit allows; returns that.
int RaiseFileLimit();

}  // namespace sluice::bench
