// What a benchmark sends: requests with arrival times, made of random tokens or replayed from a
// trace. Pure functions of their options and seed, so a run can be repeated. Plain data; any
// thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sluice::loadgen {

struct PlannedRequest {
  absl::Duration arrival;       // since the start of the run; used by the open loop only
  std::vector<int32_t> prompt;  // token ids
  int max_tokens = 0;           // forced: end of sequence is ignored
};

// Tokens are drawn from [low_token, high_token], plain text in every DeepSeek vocabulary by
// default.
struct TokenRange {
  int32_t low_token = 300;
  int32_t high_token = 3900;
};

struct RandomWorkloadOptions {
  int num_requests = 100;
  int prompt_tokens = 512;
  double prompt_tokens_spread = 0;  // 0.5: uniform in +-50 % of prompt_tokens
  int output_tokens = 64;
  double output_tokens_spread = 0;
  int shared_prefix_tokens = 0;    // the first tokens of every prompt, the same for all
  double requests_per_second = 0;  // open loop: Poisson arrivals; 0: all at the start
  uint64_t seed = 1;
  TokenRange tokens;
};
// INVALID_ARGUMENT names the option.
absl::StatusOr<std::vector<PlannedRequest>> MakeRandomWorkload(
    const RandomWorkloadOptions& options);

// A trace in Mooncake's published format: one JSON object a line with timestamp (ms), input_length,
// output_length (tokens) and hash_ids, one id per 512 prompt tokens; equal ids become equal tokens,
// so shared prefixes are really shared. The first request that is kept arrives at once, the others
// as long after it as in the trace.
struct TraceWorkloadOptions {
  std::string path;
  int max_requests = 0;       // 0: all
  double length_scale = 1;    // 0.05: prompts, outputs and blocks a twentieth as long
  double time_scale = 1;      // 0.5: twice the rate
  int max_prompt_tokens = 0;  // longer ones are left out (and counted); 0: no limit
  int max_output_tokens = 0;  // longer ones are cut (and counted); 0: no limit
  uint64_t seed = 1;
  TokenRange tokens;
};
struct TraceWorkload {
  std::vector<PlannedRequest> requests;
  int num_left_out = 0;  // prompt too long
  int num_cut = 0;       // of `requests`: answer shorter than in the trace
};
absl::StatusOr<TraceWorkload> LoadTraceWorkload(const TraceWorkloadOptions& options);

}  // namespace sluice::loadgen
