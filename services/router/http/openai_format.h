// Answers in OpenAI's JSON: chat.completion(.chunk), text_completion, usage, errors, models. What
// named clients need of each field is in docs/api.md. Pure; not thread-safe; one formatter per
// request.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "services/router/api/error_table.h"
#include "services/router/api/generation_call.h"
#include "services/router/api/output_processor.h"
#include "services/router/api/plan.h"
#include "services/router/http/json_request.h"
#include "services/router/http/json_writer.h"
#include "tokenizer/tokenizer.h"

namespace sluice::router {

enum class ApiKind { kChat, kCompletion };

struct FormatOptions {
  ApiKind kind = ApiKind::kChat;
  StreamOptions stream;
  std::string request_id;
  std::string system_fingerprint;
  int64_t created_unix_seconds = 0;
};

class OpenAiFormatter {
 public:
  // `tokenizer` and `plan` must outlive this.
  OpenAiFormatter(const Tokenizer& tokenizer, const GenerationPlan& plan, FormatOptions options);

  // One chunk of a stream, without "data: ".
  std::string Chunk(const ChoiceDelta& delta);
  // The chunk after the last one, with stream_options.include_usage or include_timings.
  std::string UsageChunk(const RequestSummary& summary) const;
  // A whole answer from the deltas so far collected by Collect.
  void Collect(const ChoiceDelta& delta);
  std::string Full(const RequestSummary& summary);

 private:
  struct ChoiceState {
    ChoiceDelta collected;
    int64_t text_offset_chars = 0;  // of the next token, for completion logprobs
  };

  std::string Head(absl::string_view object) const;
  void AppendChatChoice(const ChoiceDelta& delta, bool chunk, JsonWriter* json);
  void AppendCompletionChoice(const ChoiceDelta& delta, JsonWriter* json);
  void AppendReasoning(const std::string& reasoning, JsonWriter* json) const;
  void AppendChatLogprobs(const std::vector<SampledToken>& tokens, JsonWriter* json) const;
  void AppendCompletionLogprobs(const std::vector<SampledToken>& tokens, ChoiceState* state,
                                JsonWriter* json) const;
  void AppendTokenIds(const ChoiceDelta& delta, JsonWriter* json) const;
  std::string TokenText(TokenId id) const;

  const Tokenizer& tokenizer_;
  const GenerationPlan& plan_;
  const FormatOptions options_;
  const std::string chunk_head_;
  std::vector<ChoiceState> choices_;
};

// {"error":{...}}
std::string FormatError(const ApiError& error);

}  // namespace sluice::router
