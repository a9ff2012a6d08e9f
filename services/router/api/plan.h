// Checks a request and turns it into token ids and sampling parameters: everything that can be
// refused before work is spent is refused here, with the parameter's name. Pure but for the
// tokenizer's time; any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/sampling_params.h"
#include "services/router/api/api_context.h"
#include "services/router/api/request.h"

namespace sluice::router {

// How a choice's tokens become text.
struct OutputOptions {
  std::vector<std::string> stop;
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;
  bool return_token_ids = false;
  int num_top_logprobs = -1;  // -1: no logprobs
  // Chat only: where the answer starts. Unset: no reasoning is looked for.
  std::optional<ChatEncoder::Start> reasoning_start;
};

// A checked request. Choice i belongs to prompt i / n and samples with seed + i % n.
struct GenerationPlan {
  RequestApi api = RequestApi::kOpenAi;
  std::string request_id;
  std::string model;  // the served name
  std::vector<std::vector<TokenId>> prompts;
  std::vector<std::string> echo_texts;  // per prompt, with echo
  int n = 1;
  SamplingParams sampling;      // max_tokens per prompt is in max_tokens below
  std::vector<int> max_tokens;  // per prompt
  OutputOptions output;
  std::string tenant;
  // MonotonicNow() scale.
  absl::Time received_at = absl::InfinitePast();
  absl::Time parsed_at = absl::InfinitePast();  // when planning began
  absl::Time deadline = absl::InfiniteFuture();

  int num_choices() const { return static_cast<int>(prompts.size()) * n; }
  int64_t num_prompt_tokens() const;
};

absl::StatusOr<GenerationPlan> PlanCompletion(const ApiContext& context,
                                              const CompletionRequest& request);
absl::StatusOr<GenerationPlan> PlanChat(const ApiContext& context, const ChatRequest& request);

absl::StatusOr<std::vector<TokenId>> Tokenize(const ApiContext& context,
                                              const TokenizeRequest& request);
// What Detokenize checks first, for a front that has not copied the tokens yet.
absl::Status CheckDetokenize(const ApiContext& context, const std::string& model,
                             size_t num_tokens);
absl::StatusOr<std::string> Detokenize(const ApiContext& context, const DetokenizeRequest& request);

// NOT_FOUND unless `model` is empty or served.
absl::Status CheckModel(const ApiContext& context, const std::string& model);

}  // namespace sluice::router
