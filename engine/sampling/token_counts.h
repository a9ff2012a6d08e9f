// Which tokens a sequence has seen, for the penalties; kept only for sequences that use one.
// Owner: the sequence's entry in the engine; engine thread only.
#pragma once

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "common/sampling_params.h"

namespace sluice {

class TokenCounts {
 public:
  static bool NeededBy(const SamplingParams& params) {
    return params.repetition_penalty != 1 || params.presence_penalty != 0 ||
           params.frequency_penalty != 0;
  }

  // `tokens`: prompt, then `num_output_tokens` of output.
  TokenCounts(absl::Span<const TokenId> tokens, int num_output_tokens) {
    const size_t num_prompt = tokens.size() - static_cast<size_t>(num_output_tokens);
    for (const TokenId token : tokens.first(num_prompt)) output_counts_.try_emplace(token, 0);
    for (const TokenId token : tokens.subspan(num_prompt)) AddOutput(token);
  }

  void AddOutput(TokenId token) { ++output_counts_[token]; }

  // For every token seen, in this order: repetition (prompt and output), then frequency and
  // presence (output only). Tokens do not influence each other, so the map's order does not matter.
  void ApplyPenalties(const SamplingParams& params, absl::Span<float> logits) const {
    for (const auto& [token, output_count] : output_counts_) {
      if (static_cast<size_t>(token) >= logits.size()) continue;
      float& logit = logits[static_cast<size_t>(token)];
      if (params.repetition_penalty != 1) {
        logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      }
      if (output_count > 0) {
        logit -= params.frequency_penalty * static_cast<float>(output_count);
        logit -= params.presence_penalty;
      }
    }
  }

 private:
  absl::flat_hash_map<TokenId, int> output_counts_;  // 0: in the prompt only
};

}  // namespace sluice
