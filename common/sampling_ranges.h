// The legal values of SamplingParams, the same for the API, the wire and the sampler: what the
// router accepts no worker refuses. Pure functions, any thread.
#pragma once

#include "absl/status/status.h"
#include "common/sampling_params.h"

namespace sluice {

// Closed; NaN is outside every range.
struct SamplingRange {
  float low;
  float high;
  bool Contains(double value) const { return value >= low && value <= high; }
};

inline constexpr SamplingRange kTemperatureRange = {0, 100};
// A vocabulary has fewer than a million tokens, so the best one alone has at least this probability
// and the set could not become smaller.
inline constexpr SamplingRange kTopPRange = {1e-6F, 1};
inline constexpr SamplingRange kMinPRange = {0, 1};
inline constexpr SamplingRange kPresencePenaltyRange = {-2, 2};
inline constexpr SamplingRange kFrequencyPenaltyRange = {-2, 2};
// Logits are divided by it and must stay finite.
inline constexpr SamplingRange kRepetitionPenaltyRange = {0.01F, 10};
inline constexpr SamplingRange kLogitBiasRange = {-100, 100};

// INVALID_ARGUMENT names the first field outside its range. Token ids and lengths depend on the
// model and are not looked at.
absl::Status CheckSamplingRanges(const SamplingParams& params);

}  // namespace sluice
