#include "engine/sampling/logprobs.h"

#include <algorithm>
#include <cmath>

#include "engine/sampling/exp_weights.h"

namespace sluice {

double LogSumExp(absl::Span<const float> logits, float max) {
  return static_cast<double>(max) + std::log(ExpWeights(logits, max, nullptr));
}

std::vector<TokenLogprob> TopLogprobs(absl::Span<const float> logits, double log_sum_exp,
                                      int count) {
  std::vector<TokenLogprob> top;  // `logprob` holds the logit until the end
  const size_t size = std::min(static_cast<size_t>(std::max(count, 0)), logits.size());
  if (size == 0) return top;
  top.reserve(size + 1);
  for (size_t i = 0; i < logits.size(); ++i) {
    // Later ids lose ties, so the order is decided by strict comparison alone.
    if (top.size() == size && !(logits[i] > top.back().logprob)) continue;
    const auto place = std::upper_bound(
        top.begin(), top.end(), logits[i],
        [](float logit, const TokenLogprob& other) { return logit > other.logprob; });
    top.insert(place, {static_cast<TokenId>(i), logits[i]});
    if (top.size() > size) top.pop_back();
  }
  for (TokenLogprob& entry : top) entry.logprob = Logprob(entry.logprob, log_sum_exp);
  return top;
}

}  // namespace sluice
