// The folder in which `sluice up` keeps what others need to find its cluster: a lock held as long
// as it runs, the children's port files, and cluster.json with addresses and process ids. Used by
// one thread.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sluice::cli {

// $XDG_RUNTIME_DIR/sluice, or ./run where there is none.
std::string DefaultRunDir();
// " --run-dir X" for commands that are printed; empty for the default.
std::string RunDirFlag(const std::string& run_dir);

struct ClusterInfo {
  pid_t pid = 0;             // of the launcher
  std::string http_address;  // host:port
  std::string grpc_address;
  std::string admin_address;
  absl::Duration stop_timeout = absl::Seconds(60);  // the longest that it takes to stop
};

// What the running cluster of `run_dir` wrote; NOT_FOUND if none runs there.
absl::StatusOr<ClusterInfo> ReadClusterInfo(const std::string& run_dir);
absl::Status WriteClusterInfo(const std::string& run_dir, const ClusterInfo& info);

// Ports a process wrote once it listened. Missing ones are 0.
struct PortFile {
  int http_port = 0;
  int grpc_port = 0;
  int fleet_port = 0;
  int admin_port = 0;
};
// Nothing while the file is not there; INVALID_ARGUMENT if it is not what it should be.
absl::StatusOr<std::optional<PortFile>> ReadPortFile(const std::string& path);

// At most one cluster per folder.
class RunDirLock {
 public:
  // Creates the folder (for this user only) and removes what an earlier cluster wrote there.
  // ALREADY_EXISTS if a cluster runs there.
  static absl::StatusOr<std::unique_ptr<RunDirLock>> Take(const std::string& run_dir);
  ~RunDirLock();  // removes cluster.json

  static bool IsHeld(const std::string& run_dir);

 private:
  RunDirLock(std::string run_dir, int fd) : run_dir_(std::move(run_dir)), fd_(fd) {}
  const std::string run_dir_;
  const int fd_;
};

}  // namespace sluice::cli
