// Chooses one sequence's next token from its row of logits. A pure function of (logits, parameters,
// the sequence's earlier tokens, token index): the batch, the machine's load and the order of calls
// do not enter. Owner: the engine; one thread (the object holds scratch space, no state).
//
// Order of operations:
//   1. logit_bias is added.
//   2. While the answer is shorter than min_tokens, stop tokens are masked (-inf).
//   3. Penalties: repetition (tokens of prompt and output: positive logits are divided, others
//      multiplied), then frequency (times the count in the output), then presence (output).
//   4. temperature 0: the largest logit, lowest id on ties. Done.
//      Otherwise (logit - largest) / temperature.
//   5. top_k: the k best, lower id first on ties.
//   6. min_p: of these, those with at least min_p times the probability of the best.
//   7. top_p: of these, renormalised, the smallest leading set with at least that probability.
//   8. Inverse transform over what is left, in ascending id, with Philox4x32-10 that is keyed by
//      the seed and counts by the token's index.
// Logprobs are those of the raw logits: nothing of the above shows in them.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/sampling_params.h"
#include "engine/sampling/rank_cut.h"
#include "engine/sampling/token_counts.h"

namespace sluice {

// CheckSamplingRanges, and biased tokens are in the vocabulary. INVALID_ARGUMENT names the field.
// Refusals are the router's to explain to users; this protects the engine.
absl::Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size);

class Sampler {
 public:
  // Only ids below `sampleable_vocab_size` are ever chosen or listed: a model's vocabulary may be
  // padded beyond its tokenizer's. REQUIRES: 0 < sampleable_vocab_size <= vocab_size.
  Sampler(int64_t vocab_size, int64_t sampleable_vocab_size);

  // `logits`: [vocab_size], as the model gave them. `counts` may be null when TokenCounts::NeededBy
  // is false. `token_index`: of the answer, journalled tokens counted. INTERNAL when the logits are
  // not finite, or everything is masked.
  absl::StatusOr<SampledToken> Sample(absl::Span<const float> logits, const SamplingParams& params,
                                      const TokenCounts* counts, int token_index);

 private:
  // Steps 1 to 3. Returns `logits` itself when there is nothing to do.
  absl::Span<const float> Adjust(absl::Span<const float> logits, const SamplingParams& params,
                                 const TokenCounts* counts, int token_index);
  // Steps 5 to 8, on logits with the given maximum.
  TokenId Draw(absl::Span<const float> logits, float max, const SamplingParams& params,
               int token_index);

  const size_t vocab_size_;
  const size_t sampleable_vocab_size_;
  // Scratch, [sampleable_vocab_size] each.
  std::vector<float> adjusted_;
  std::vector<float> scaled_;
  std::vector<float> weights_;
  std::vector<TokenId> ids_;
  RankCut rank_cut_;
};

}  // namespace sluice
