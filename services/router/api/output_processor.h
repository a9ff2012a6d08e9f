// Turns one choice's tokens into what its client sees: text split at whole characters, cut at stop
// strings, divided into reasoning and content, with log-probabilities. Pure; not thread-safe; one
// per choice.
#pragma once

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "common/sampling_params.h"
#include "services/router/api/plan.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/reasoning_parser.h"
#include "tokenizer/stop_matcher.h"
#include "tokenizer/tokenizer.h"

namespace sluice::router {

enum class FinishReason { kNone, kStop, kLength };

// What a choice gained since its last delta.
struct ChoiceDelta {
  int index = 0;
  std::string text;       // answer
  std::string reasoning;  // what the model thinks (chat)
  // The tokens behind the text, in order: filled with return_token_ids or logprobs.
  std::vector<SampledToken> tokens;
  bool first = false;  // the choice's first delta; its text may be empty
  FinishReason finish = FinishReason::kNone;
  std::string matched_stop;   // the stop string that ended it
  int completion_tokens = 0;  // so far
  int prompt_tokens = 0;
};

class OutputProcessor {
 public:
  // `tokenizer` must outlive this. `stop_token_ids` is sorted.
  OutputProcessor(const Tokenizer& tokenizer, const OutputOptions& options,
                  const std::vector<TokenId>& stop_token_ids, int min_tokens);

  // Appends what `tokens` add to *delta. Returns true when a stop string ended the choice: the rest
  // of `tokens` is dropped, and nothing may be added afterwards.
  bool Add(absl::Span<const SampledToken> tokens, ChoiceDelta* delta);
  // The generation ended without a stop string: releases what was held back.
  void Finish(ChoiceDelta* delta);

  int completion_tokens() const { return completion_tokens_; }
  int reasoning_tokens() const { return reasoning_tokens_; }
  const std::string& matched_stop() const { return matched_stop_; }

 private:
  bool IsStopToken(TokenId id) const;
  void Emit(absl::string_view text, ChoiceDelta* delta);

  const std::vector<TokenId> stop_token_ids_;
  const bool include_stop_;
  const bool keep_tokens_;
  const bool has_stops_;
  const bool has_reasoning_;
  const int min_tokens_;

  IncrementalDetokenizer detokenizer_;
  StopMatcher stop_matcher_;
  ReasoningParser reasoning_parser_;
  int completion_tokens_ = 0;
  int reasoning_tokens_ = 0;
  std::string matched_stop_;
};

}  // namespace sluice::router
