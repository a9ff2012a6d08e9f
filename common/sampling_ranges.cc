#include "common/sampling_ranges.h"

#include "absl/strings/str_cat.h"

namespace sluice {

absl::Status CheckSamplingRanges(const SamplingParams& params) {
  const struct {
    const char* name;
    float value;
    SamplingRange range;
  } fields[] = {
      {"temperature", params.temperature, kTemperatureRange},
      {"top_p", params.top_p, kTopPRange},
      {"min_p", params.min_p, kMinPRange},
      {"presence_penalty", params.presence_penalty, kPresencePenaltyRange},
      {"frequency_penalty", params.frequency_penalty, kFrequencyPenaltyRange},
      {"repetition_penalty", params.repetition_penalty, kRepetitionPenaltyRange},
  };
  const auto outside = [](const auto& name, float value, SamplingRange range) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", value, ", not between ", range.low, " and ", range.high));
  };
  for (const auto& field : fields) {
    if (!field.range.Contains(field.value)) return outside(field.name, field.value, field.range);
  }
  for (const auto& [token, bias] : params.logit_bias) {
    if (!kLogitBiasRange.Contains(bias)) {
      return outside(absl::StrCat("logit_bias[", token, "]"), bias, kLogitBiasRange);
    }
  }
  if (params.top_k < 0) return absl::InvalidArgumentError(absl::StrCat("top_k is ", params.top_k));
  if (params.num_top_logprobs < -1 || params.num_top_logprobs > kMaxNumTopLogprobs) {
    return absl::InvalidArgumentError(absl::StrCat("num_top_logprobs is ", params.num_top_logprobs,
                                                   ", not between -1 and ", kMaxNumTopLogprobs));
  }
  return absl::OkStatus();
}

}  // namespace sluice
