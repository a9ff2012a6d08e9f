// Does this engine compute what it should? Asked once, before a worker tells anybody that it is
// ready: flipped weights, a wrong kernel for this processor or a bad memory module give fluent
// nonsense that no later check would notice. The questions go through the engine's own scheduler,
// blocks and sampler, and leave nothing behind: they fill no whole KV block. Engine thread.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "engine/runtime/engine.h"
#include "engine/weights/manifest.h"

namespace sluice {

// Prompt and answer together stay below a KV block.
inline constexpr int kMaxGoldenPromptTokens = 32;

// A prompt for a model without a tokenizer at hand: `count` ids below `vocab_size`.
std::vector<TokenId> SyntheticGoldenPrompt(int64_t vocab_size, int count);

// The engine's greedy answer to `prompt`, for a manifest. The tolerances are left at their least.
// REQUIRES: 0 < prompt.size() <= kMaxGoldenPromptTokens, nothing else runs in the engine.
absl::StatusOr<GoldenAnswer> MakeGoldenAnswer(Engine* engine, absl::Span<const TokenId> prompt);

// DATA_LOSS says at which token the answers part and by how much; `golden` says how much is allowed
// at the engine's precision.
absl::Status CheckGoldenAnswer(Engine* engine, const GoldenAnswer& golden);

// The largest distance between a log-probability of `golden` and the engine's, as far as both chose
// the same tokens: from what the tolerance for its precision can be drawn.
absl::StatusOr<double> LargestDeviation(Engine* engine, const GoldenAnswer& golden);

// Without a golden answer: log-probabilities are finite, and a token comes out with the same bits
// alone, beside another sequence, and computed with its whole prefix as one prompt. DATA_LOSS.
absl::Status CheckSelfConsistency(Engine* engine);

}  // namespace sluice
