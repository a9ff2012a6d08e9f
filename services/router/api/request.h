// A generation request as a client wrote it, after parsing and before checking: types are right,
// ranges are not yet. Both fronts fill these; plan.h checks them. Unset means the client did not
// say.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "services/router/core/dispatcher.h"
#include "tokenizer/chat_encoder.h"

namespace sluice::router {

struct SamplingRequest {
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;  // -1 or 0: all
  std::optional<double> min_p;
  std::optional<uint64_t> seed;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<double> repetition_penalty;
  std::vector<std::pair<int64_t, double>> logit_bias;  // token id, bias
  std::vector<std::string> stop;
  std::vector<int64_t> stop_token_ids;
  std::optional<int64_t> min_tokens;
  std::optional<int64_t> max_tokens;
  const char* max_tokens_field = "max_tokens";  // what the client calls it
  std::optional<int64_t> n;
  bool logprobs = false;
  std::optional<int64_t> top_logprobs;
  const char* top_logprobs_field = "top_logprobs";  // what the client calls it
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  bool include_stop_str_in_output = false;
};

struct RequestCommon {
  // The front sets both; the id is shown to the client as x-request-id or request_id.
  RequestApi api = RequestApi::kOpenAi;
  std::string request_id;
  std::string model;  // "": the only model
  SamplingRequest sampling;
  bool return_token_ids = false;
  std::string tenant;  // prefix cache is shared within a tenant only
  // MonotonicNow() scale.
  absl::Time received_at = absl::InfinitePast();  // unset: when it is planned
  absl::Time deadline = absl::InfiniteFuture();
};

using PromptInput = std::variant<std::string, std::vector<int64_t>>;

struct CompletionRequest : RequestCommon {
  std::vector<PromptInput> prompts;
  bool echo = false;
};

struct ChatRequest : RequestCommon {
  std::vector<ChatMessage> messages;  // roles as written; developer counts as system
  std::optional<bool> thinking;
  bool add_generation_prompt = true;
  // The last message is the beginning of the answer (DeepSeek's `prefix`).
  bool continue_final_message = false;
};

struct TokenizeRequest {
  std::string model;
  std::variant<std::string, std::vector<ChatMessage>> input;
  bool add_special_tokens = true;
  bool add_generation_prompt = true;
  std::optional<bool> thinking;
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int64_t> tokens;
};

}  // namespace sluice::router
