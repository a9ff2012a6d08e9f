// Log-probabilities of the raw distribution: log-softmax of the logits as the model gave them.
// Pure functions, any thread.
#pragma once

#include <vector>

#include "absl/types/span.h"
#include "common/sampling_params.h"

namespace sluice {

// log(sum(exp(logits))). `max` is the largest logit; finite.
double LogSumExp(absl::Span<const float> logits, float max);

inline float Logprob(float logit, double log_sum_exp) {
  return static_cast<float>(static_cast<double>(logit) - log_sum_exp);
}

// The `count` most likely tokens (fewer if there are fewer), best first, lowest id first on ties.
std::vector<TokenLogprob> TopLogprobs(absl::Span<const float> logits, double log_sum_exp,
                                      int count);

}  // namespace sluice
