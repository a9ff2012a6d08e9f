// Measures the handoff between this process, as a decode worker, and a child, as a prefill worker:
// the shipped agent and channel, without engines. Main thread.
#pragma once

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/handoff_bench/sending_process.h"

namespace sluice::bench {

struct PairResult {
  std::string transport;           // that UCX chose
  double bytes_per_second = 0;     // over all counted transfers
  absl::Duration median_duration;  // first offer -> verified
  absl::Duration median_exposed;   // end of the prompt's computation -> verified
};

// `num_warm_up` transfers, then `num_counted` ones, `options.num_transfers_at_once` under way.
absl::StatusOr<PairResult> RunPair(const PairOptions& options, int num_warm_up, int num_counted);

}  // namespace sluice::bench
