// Sends a workload to a target and collects the records.
#pragma once

#include <functional>
#include <vector>

#include "absl/time/time.h"
#include "bench/loadgen/target.h"
#include "bench/loadgen/workload.h"

namespace sluice::loadgen {

struct RunOptions {
  bool open_loop = false;  // send at arrival times, whatever is still running
  int concurrency = 8;     // closed loop: requests in flight; open loop: their upper bound
  absl::Duration request_timeout = absl::Minutes(5);
  // Called about five times a second with the number of finished requests; may be null.
  std::function<void(int finished, int total)> on_progress;
};

struct RunResult {
  std::vector<RequestRecord> records;  // in order of the workload
  absl::Duration duration;             // first send -> last answer or failure
  // Open loop: how late the latest request was sent because `concurrency` was exhausted. Large
  // values mean that the load was not what was asked for; the requests' latencies hold the delay.
  absl::Duration worst_send_delay;
};

// Blocks until every request has its answer. One thread a request in flight.
RunResult RunWorkload(const std::vector<PlannedRequest>& workload, const TargetFactory& targets,
                      const RunOptions& options);

}  // namespace sluice::loadgen
