// Routers that are given by name (dns:host:port): looks their addresses up, and says in the log
// when that begins to fail, why, and when it works again. Thread-safe.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace sluice::worker {

// Every address of `host_port` ("name:port"), as "ip:port", or why there is none. May block; called
// on several threads at once.
using Resolver =
    std::function<absl::StatusOr<std::vector<std::string>>(const std::string& host_port)>;

class RouterNames {
 public:
  // A null `resolver` is the system's.
  explicit RouterNames(Resolver resolver);

  // Blocks. The error has been logged, unless it was the same the last time.
  absl::StatusOr<std::vector<std::string>> LookUp(const std::string& host_port);
  // "name:port: why", for each name whose last lookup failed; "" when there is none.
  std::string Failures() const;

 private:
  const Resolver resolver_;
  mutable absl::Mutex mu_;
  // Of each name that was looked up: "" or why its last lookup failed.
  absl::btree_map<std::string, std::string> outcomes_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sluice::worker
