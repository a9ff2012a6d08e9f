#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/sampling_ranges.h"
#include "engine/sampling/exp_weights.h"
#include "engine/sampling/logprobs.h"
#include "engine/sampling/philox.h"
#include "engine/sampling/row_max.h"

namespace sluice {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

}  // namespace

absl::Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size) {
  const absl::Status in_range = CheckSamplingRanges(params);
  if (!in_range.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("sampling: ", in_range.message()));
  }
  for (const auto& [token, bias] : params.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("sampling: logit_bias of token ", token,
                                                     ", the vocabulary has ", vocab_size));
    }
  }
  return absl::OkStatus();
}

Sampler::Sampler(int64_t vocab_size, int64_t sampleable_vocab_size)
    : vocab_size_(static_cast<size_t>(vocab_size)),
      sampleable_vocab_size_(static_cast<size_t>(sampleable_vocab_size)) {
  SLUICE_CHECK(0 < sampleable_vocab_size && sampleable_vocab_size <= vocab_size);
  adjusted_.resize(sampleable_vocab_size_);
  scaled_.resize(sampleable_vocab_size_);
  weights_.resize(sampleable_vocab_size_);
  ids_.resize(sampleable_vocab_size_);
}

absl::StatusOr<SampledToken> Sampler::Sample(absl::Span<const float> logits,
                                             const SamplingParams& params,
                                             const TokenCounts* counts, int token_index) {
  SLUICE_CHECK(logits.size() == vocab_size_);
  const RowMax raw_max = FindRowMax(logits);
  if (raw_max.has_nan || !std::isfinite(raw_max.value)) {
    return absl::InternalError(
        absl::StrCat("sampling: the logits of token ", token_index, " are not finite"));
  }
  const absl::Span<const float> sampleable = logits.first(sampleable_vocab_size_);
  const absl::Span<const float> adjusted = Adjust(sampleable, params, counts, token_index);
  const bool untouched = adjusted.data() == logits.data() && adjusted.size() == logits.size();
  const RowMax max = untouched ? raw_max : FindRowMax(adjusted);
  if (max.has_nan || !std::isfinite(max.value)) {
    return absl::InternalError(absl::StrCat(
        "sampling: bias, penalties and min_tokens leave no choice for token ", token_index));
  }

  SampledToken sampled;
  if (params.temperature == 0) {
    sampled.token = static_cast<TokenId>(max.index);
  } else {
    sampled.token = Draw(adjusted, max.value, params, token_index);
  }
  if (params.num_top_logprobs >= 0) {
    const double log_sum_exp = LogSumExp(logits, raw_max.value);
    sampled.logprob = Logprob(logits[static_cast<size_t>(sampled.token)], log_sum_exp);
    sampled.top = TopLogprobs(sampleable, log_sum_exp, params.num_top_logprobs);
  }
  return sampled;
}

absl::Span<const float> Sampler::Adjust(absl::Span<const float> logits,
                                        const SamplingParams& params, const TokenCounts* counts,
                                        int token_index) {
  const bool masks_stop_tokens = token_index < params.min_tokens && !params.stop_token_ids.empty();
  const bool has_penalties = TokenCounts::NeededBy(params);
  if (params.logit_bias.empty() && !masks_stop_tokens && !has_penalties) return logits;

  const absl::Span<float> row = absl::MakeSpan(adjusted_);
  std::copy(logits.begin(), logits.end(), row.begin());
  for (const auto& [token, bias] : params.logit_bias) {
    if (static_cast<size_t>(token) < row.size()) row[static_cast<size_t>(token)] += bias;
  }
  if (masks_stop_tokens) {
    for (const TokenId token : params.stop_token_ids) {
      // A stop id outside the vocabulary never comes up: nothing to mask.
      if (static_cast<size_t>(token) < row.size()) row[static_cast<size_t>(token)] = kMasked;
    }
  }
  if (has_penalties) {
    SLUICE_CHECK(counts != nullptr);
    counts->ApplyPenalties(params, row);
  }
  return row;
}

TokenId Sampler::Draw(absl::Span<const float> logits, float max, const SamplingParams& params,
                      int token_index) {
  // The candidates: values[i] <= 0 belongs to token i, or to ids_[i] once some are dropped. Ids
  // ascend, so ranking by index breaks ties as ranking by id does.
  absl::Span<float> values = absl::MakeSpan(scaled_);
  for (size_t i = 0; i < values.size(); ++i) values[i] = (logits[i] - max) / params.temperature;

  const bool cuts_top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < values.size();
  if (cuts_top_k) {
    const RankCut::Last last = rank_cut_.FindMass(
        values, [](size_t) { return 1.0; }, params.top_k);
    size_t num_kept = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (!last.Includes(values[i], i)) continue;
      ids_[num_kept] = static_cast<TokenId>(i);
      values[num_kept++] = values[i];
    }
    values = values.first(num_kept);
  }

  const absl::Span<float> weights = absl::MakeSpan(weights_).first(values.size());
  double total = ExpWeights(values, 0, weights.data());
  const bool cuts_by_probability = params.min_p > 0 || params.top_p < 1;
  if (params.min_p > 0) {
    // The best has weight 1.
    for (size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] < params.min_p) weights[i] = 0;
    }
  }
  if (params.top_p < 1) {
    const RankCut::Last last = rank_cut_.FindFraction(
        values, [&](size_t i) { return static_cast<double>(weights[i]); }, params.top_p);
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!last.Includes(values[i], i)) weights[i] = 0;
    }
  }
  if (cuts_by_probability) {
    total = 0;
    for (const float weight : weights) total += weight;
  }

  const double target = TokenUniform(params.seed, static_cast<uint64_t>(token_index)) * total;
  double sum = 0;
  size_t chosen = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0) continue;
    chosen = i;  // the last one, should rounding leave the sum short of the target
    sum += weights[i];
    if (sum > target) break;
  }
  return cuts_top_k ? ids_[chosen] : static_cast<TokenId>(chosen);
}

}  // namespace sluice
