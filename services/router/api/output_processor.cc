#include "services/router/api/output_processor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::router {

OutputProcessor::OutputProcessor(const Tokenizer& tokenizer, const OutputOptions& options,
                                 const std::vector<TokenId>& stop_token_ids, int min_tokens)
    : stop_token_ids_(stop_token_ids),
      include_stop_(options.include_stop_str_in_output),
      keep_tokens_(options.return_token_ids || options.num_top_logprobs >= 0),
      has_stops_(!options.stop.empty()),
      has_reasoning_(options.reasoning_start.has_value()),
      min_tokens_(min_tokens),
      detokenizer_(tokenizer, options.skip_special_tokens),
      stop_matcher_(options.stop, options.include_stop_str_in_output),
      reasoning_parser_(options.reasoning_start.value_or(ChatEncoder::Start::kInContent)) {}

bool OutputProcessor::IsStopToken(TokenId id) const {
  return std::binary_search(stop_token_ids_.begin(), stop_token_ids_.end(), id);
}

void OutputProcessor::Emit(absl::string_view text, ChoiceDelta* delta) {
  if (text.empty()) return;
  if (!has_reasoning_) {
    absl::StrAppend(&delta->text, text);
    return;
  }
  const ReasoningParser::Delta parts = reasoning_parser_.Add(text);
  delta->reasoning += parts.reasoning;
  delta->text += parts.content;
}

bool OutputProcessor::Add(absl::Span<const SampledToken> tokens, ChoiceDelta* delta) {
  for (const SampledToken& token : tokens) {
    ++completion_tokens_;
    delta->completion_tokens = completion_tokens_;
    if (keep_tokens_) delta->tokens.push_back(token);
    // A stop token ends the text before itself: it is the last token the dispatcher sends.
    const bool hidden =
        !include_stop_ && completion_tokens_ > min_tokens_ && IsStopToken(token.token);
    const std::string text = hidden ? "" : detokenizer_.Add(token.token);
    // Stop strings count only from min_tokens on, as stop tokens do.
    if (has_stops_ && completion_tokens_ > min_tokens_) {
      const StopMatcher::Result result = stop_matcher_.Add(text);
      Emit(result.text, delta);
      if (result.stopped) {
        matched_stop_ = result.stop;
        delta->matched_stop = matched_stop_;
        if (has_reasoning_) {
          const ReasoningParser::Delta rest = reasoning_parser_.Finish();
          delta->reasoning += rest.reasoning;
          delta->text += rest.content;
        }
        return true;
      }
    } else {
      Emit(text, delta);
    }
    if (has_reasoning_ && !hidden && reasoning_parser_.in_reasoning()) ++reasoning_tokens_;
  }
  return false;
}

void OutputProcessor::Finish(ChoiceDelta* delta) {
  const std::string rest = detokenizer_.Finish();
  if (has_stops_) {
    const StopMatcher::Result result = stop_matcher_.Add(rest);
    Emit(result.text, delta);
    if (result.stopped) {
      matched_stop_ = result.stop;
      delta->matched_stop = matched_stop_;
    } else {
      Emit(stop_matcher_.Finish(), delta);
    }
  } else {
    Emit(rest, delta);
  }
  if (has_reasoning_) {
    const ReasoningParser::Delta parts = reasoning_parser_.Finish();
    delta->reasoning += parts.reasoning;
    delta->text += parts.content;
  }
}

}  // namespace sluice::router
