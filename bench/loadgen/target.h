// A server under load: takes one request, streams its answer, and records when what came. A target
// is used by one thread at a time; each thread of a run has its own.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/loadgen/workload.h"

namespace sluice::loadgen {

// Times are MonotonicNow() values.
struct RequestRecord {
  // Set by the runner: in an open loop when the request was to be sent, however late it was; in a
  // closed loop `sent`. Latencies count from here.
  absl::Time due;
  absl::Time sent;
  absl::Time first_token;  // InfiniteFuture: none came
  absl::Time last_token;
  absl::Time ended;                  // set by the runner
  std::vector<absl::Duration> gaps;  // between events that carried tokens
  int prompt_tokens = 0;             // as the server counted them
  int cached_tokens = 0;
  int output_tokens = 0;
  absl::Status status;
};

// Counts an event of a choice that came at `now`. An event that ends the choice without text
// carries no token, unless it is the first: then the only token has no text. A token may have none
// in the middle as well, such as the first half of a character.
void CountEvent(absl::Time now, bool has_text, bool is_end, RequestRecord* record);

class Target {
 public:
  virtual ~Target() = default;
  // Blocks until the answer is complete, failed, or `timeout` has passed.
  virtual RequestRecord Run(const PlannedRequest& request, absl::Duration timeout) = 0;
};

using TargetFactory = std::function<std::unique_ptr<Target>()>;

// OpenAI-compatible POST /v1/completions with streaming; any server that speaks it. `url` is
// http://host:port. The connection is kept and reopened when the server closes it.
absl::StatusOr<TargetFactory> HttpTargets(const std::string& url, const std::string& model);
// sluice.v1.Generation/Generate. `address` is host:port.
absl::StatusOr<TargetFactory> GrpcTargets(const std::string& address, const std::string& model);

}  // namespace sluice::loadgen
