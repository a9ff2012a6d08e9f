// How one sequence's next token is chosen. Plain data; checked by the router (ranges) before it
// gets here; any thread.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "common/ids.h"

namespace sluice {

// Bounds what a token costs to rank, to keep and to send; a handoff carries as many.
inline constexpr int32_t kMaxNumTopLogprobs = 256;

struct SamplingParams {
  float temperature = 1;  // 0: greedy, lowest id on ties
  float top_p = 1;        // (0, 1]
  int32_t top_k = 0;      // 0: all
  float min_p = 0;        // [0, 1]
  uint64_t seed = 0;      // with the token's index it keys a counter-based generator
  float presence_penalty = 0;
  float frequency_penalty = 0;
  float repetition_penalty = 1;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::vector<TokenId> stop_token_ids;  // end of sequence included, unless ignore_eos
  int32_t min_tokens = 0;               // stop tokens are masked before this many output tokens
  int32_t max_tokens = 16;
  int32_t num_top_logprobs = -1;  // -1: none; 0: the chosen token's; to kMaxNumTopLogprobs
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
};

struct SampledToken {
  TokenId token = 0;
  float logprob = 0;              // of the raw distribution (before penalties and temperature)
  std::vector<TokenLogprob> top;  // num_top_logprobs entries, best first
};

}  // namespace sluice
