#include "services/router/api/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/random.h"
#include "common/sampling_ranges.h"
#include "common/status_macros.h"
#include "services/router/api/error_table.h"

namespace sluice::router {
namespace {

constexpr int kMaxN = 16;
constexpr int kMaxTopLogprobs = 20;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxStopTokenIds = 256;
constexpr size_t kMaxLogitBias = 1024;
constexpr size_t kMaxMessages = 4096;
constexpr size_t kMaxTenantBytes = 256;  // each choice and each order carries it
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// Ranges are closed. NaN is outside every range.
absl::Status CheckRange(absl::string_view param, double value, SamplingRange range) {
  if (range.Contains(value)) return absl::OkStatus();
  return InvalidParameter(param, absl::StrCat(param, " must be between ", range.low, " and ",
                                              range.high, ", got ", value));
}

absl::Status CheckRange(absl::string_view param, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidParameter(
      param, absl::StrCat(param, " must be between ", low, " and ", high, ", got ", value));
}

// "the default if unset, else the value in range".
template <typename Out>
absl::Status SetChecked(absl::string_view param, const std::optional<int64_t>& value, int64_t low,
                        int64_t high, Out* field) {
  if (!value.has_value()) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(CheckRange(param, *value, low, high));
  *field = static_cast<Out>(*value);
  return absl::OkStatus();
}

absl::Status SetChecked(absl::string_view param, const std::optional<double>& value,
                        SamplingRange range, float* field) {
  if (!value.has_value()) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(CheckRange(param, *value, range));
  *field = static_cast<float>(*value);
  return absl::OkStatus();
}

absl::Status CheckTokenId(const Tokenizer& tokenizer, absl::string_view param, int64_t id) {
  if (id >= 0 && id < tokenizer.vocab_size()) return absl::OkStatus();
  return InvalidParameter(param,
                          absl::StrCat(param, " holds token id ", id, "; the model has ids 0..",
                                       tokenizer.vocab_size() - 1));
}

absl::Status CheckStops(const SamplingRequest& request) {
  if (request.stop.size() > kMaxStops) {
    return InvalidParameter("stop", absl::StrCat("stop may hold at most ", kMaxStops,
                                                 " strings, got ", request.stop.size()));
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty()) return InvalidParameter("stop", "stop must not hold an empty string");
    if (stop.size() > kMaxStopBytes) {
      return InvalidParameter(
          "stop", absl::StrCat("a stop string may have at most ", kMaxStopBytes, " bytes"));
    }
  }
  return absl::OkStatus();
}

absl::Status FillTokenLists(const ApiContext& context, const SamplingRequest& request,
                            SamplingParams* sampling) {
  const Tokenizer& tokenizer = context.tokenizer();
  if (request.stop_token_ids.size() > kMaxStopTokenIds) {
    return InvalidParameter("stop_token_ids",
                            absl::StrCat("stop_token_ids may hold at most ", kMaxStopTokenIds));
  }
  for (int64_t id : request.stop_token_ids) {
    SLUICE_RETURN_IF_ERROR(CheckTokenId(tokenizer, "stop_token_ids", id));
    sampling->stop_token_ids.push_back(static_cast<TokenId>(id));
  }
  if (!request.ignore_eos) {
    for (TokenId id : context.model().eos_token_ids) sampling->stop_token_ids.push_back(id);
  }
  std::sort(sampling->stop_token_ids.begin(), sampling->stop_token_ids.end());
  sampling->stop_token_ids.erase(
      std::unique(sampling->stop_token_ids.begin(), sampling->stop_token_ids.end()),
      sampling->stop_token_ids.end());

  if (request.logit_bias.size() > kMaxLogitBias) {
    return InvalidParameter("logit_bias",
                            absl::StrCat("logit_bias may hold at most ", kMaxLogitBias, " tokens"));
  }
  for (const auto& [id, bias] : request.logit_bias) {
    SLUICE_RETURN_IF_ERROR(CheckTokenId(tokenizer, "logit_bias", id));
    SLUICE_RETURN_IF_ERROR(CheckRange("logit_bias", bias, kLogitBiasRange));
    sampling->logit_bias.emplace_back(static_cast<TokenId>(id), static_cast<float>(bias));
  }
  return absl::OkStatus();
}

absl::Status FillSampling(const ApiContext& context, const SamplingRequest& request,
                          GenerationPlan* plan) {
  SamplingParams& sampling = plan->sampling;
  const GenerationDefaults& defaults = context.model().defaults;
  sampling.temperature = static_cast<float>(defaults.temperature);
  sampling.top_p = std::max(static_cast<float>(defaults.top_p), kTopPRange.low);
  sampling.min_p = static_cast<float>(defaults.min_p);
  sampling.repetition_penalty = static_cast<float>(defaults.repetition_penalty);
  sampling.top_k = static_cast<int32_t>(defaults.top_k);
  SLUICE_RETURN_IF_ERROR(
      SetChecked("temperature", request.temperature, kTemperatureRange, &sampling.temperature));
  if (request.top_p.has_value() && !(*request.top_p > 0)) {
    return InvalidParameter("top_p", "top_p must be above 0");
  }
  if (request.top_p.has_value()) {
    // Whatever is above 0 is legal; below the range it means the best token, as the low end does.
    const double top_p = std::max<double>(*request.top_p, kTopPRange.low);
    SLUICE_RETURN_IF_ERROR(
        SetChecked("top_p", std::make_optional(top_p), kTopPRange, &sampling.top_p));
  }
  SLUICE_RETURN_IF_ERROR(SetChecked("top_k", request.top_k, -1, kMaxInt32, &sampling.top_k));
  sampling.top_k = std::max(sampling.top_k, 0);
  SLUICE_RETURN_IF_ERROR(SetChecked("min_p", request.min_p, kMinPRange, &sampling.min_p));
  SLUICE_RETURN_IF_ERROR(SetChecked("presence_penalty", request.presence_penalty,
                                    kPresencePenaltyRange, &sampling.presence_penalty));
  SLUICE_RETURN_IF_ERROR(SetChecked("frequency_penalty", request.frequency_penalty,
                                    kFrequencyPenaltyRange, &sampling.frequency_penalty));
  SLUICE_RETURN_IF_ERROR(SetChecked("repetition_penalty", request.repetition_penalty,
                                    kRepetitionPenaltyRange, &sampling.repetition_penalty));
  sampling.seed = request.seed.has_value() ? *request.seed : RandomUint64();
  SLUICE_RETURN_IF_ERROR(SetChecked("n", request.n, 1, kMaxN, &plan->n));

  if (request.max_tokens.has_value()) {
    SLUICE_RETURN_IF_ERROR(CheckRange(request.max_tokens_field, *request.max_tokens, 1, kMaxInt32));
  }
  SLUICE_RETURN_IF_ERROR(SetChecked("min_tokens", request.min_tokens, 0,
                                    request.max_tokens.value_or(kMaxInt32), &sampling.min_tokens));
  if (request.logprobs) sampling.num_top_logprobs = 0;
  if (request.top_logprobs.has_value()) {
    SLUICE_RETURN_IF_ERROR(
        CheckRange(request.top_logprobs_field, *request.top_logprobs, 0, kMaxTopLogprobs));
    if (request.logprobs) {
      sampling.num_top_logprobs = static_cast<int32_t>(*request.top_logprobs);
    } else if (*request.top_logprobs > 0) {
      return InvalidParameter("top_logprobs", "top_logprobs needs logprobs to be set");
    }
  }
  SLUICE_RETURN_IF_ERROR(CheckStops(request));
  SLUICE_RETURN_IF_ERROR(FillTokenLists(context, request, &sampling));

  plan->output.stop = request.stop;
  plan->output.include_stop_str_in_output = request.include_stop_str_in_output;
  plan->output.skip_special_tokens = request.skip_special_tokens;
  plan->output.num_top_logprobs = sampling.num_top_logprobs;
  return absl::OkStatus();
}

// Each prompt and its answer must fit into `max_model_len`. Prompts that do not fit by themselves
// may have been encoded in part only.
absl::Status FillMaxTokens(int64_t max_model_len, const SamplingRequest& request,
                           absl::string_view prompt_param, GenerationPlan* plan) {
  for (const std::vector<TokenId>& prompt : plan->prompts) {
    if (prompt.empty()) {
      return InvalidParameter(prompt_param, absl::StrCat(prompt_param, " must not be empty"));
    }
    const int64_t prompt_tokens = static_cast<int64_t>(prompt.size());
    const int64_t wanted = request.max_tokens.value_or(1);
    if (prompt_tokens + wanted > max_model_len) {
      return MakeError(
          ErrorKind::kContextLength,
          absl::StrCat(
              "This model's maximum context length is ", max_model_len,
              " tokens. However, you requested ", prompt_tokens > max_model_len ? "at least " : "",
              prompt_tokens + wanted, " tokens (", prompt_tokens > max_model_len ? "at least " : "",
              prompt_tokens, " in the prompt, at least ", wanted,
              " in the completion). Please reduce the length of the prompt or max_tokens."),
          prompt_param);
    }
    const int64_t room = max_model_len - prompt_tokens;
    const int64_t max_tokens = request.max_tokens.value_or(room);
    if (plan->sampling.min_tokens > max_tokens) {
      return InvalidParameter("min_tokens", absl::StrCat("min_tokens must be at most ", max_tokens,
                                                         ", the room for the completion"));
    }
    plan->max_tokens.push_back(static_cast<int>(max_tokens));
  }
  return absl::OkStatus();
}

// Refuses what cannot fit before time is spent on tokenizing it: a text of so many bytes has more
// tokens than the context, whatever they are. REQUIRES: the tokens will stand for all the bytes.
absl::Status CheckTextBytes(const ApiContext& context, absl::string_view param, size_t bytes) {
  const int64_t max_token_bytes = static_cast<int64_t>(context.tokenizer().max_token_bytes());
  const int64_t least_tokens =
      (static_cast<int64_t>(bytes) + max_token_bytes - 1) / max_token_bytes;
  const int64_t max_model_len = context.MaxModelLen();
  if (least_tokens <= max_model_len) return absl::OkStatus();
  return MakeError(
      ErrorKind::kContextLength,
      absl::StrCat("This model's maximum context length is ", max_model_len,
                   " tokens. However, the ", bytes, " bytes of the prompt are at least ",
                   least_tokens, " tokens. Please reduce the length of the prompt."),
      param);
}

absl::Status CheckChatBytes(const ApiContext& context, const std::vector<ChatMessage>& messages,
                            const ChatOptions& options) {
  size_t bytes = 0;
  for (const ChatMessage& message : messages) {
    bytes += message.content.size();
    for (const ChatToolCall& call : message.tool_calls) bytes += call.arguments.size();
  }
  if (CheckTextBytes(context, "messages", bytes).ok()) return absl::OkStatus();
  // The format may leave out some of it, such as the reasoning of earlier answers.
  const absl::StatusOr<std::string> text = context.chat_encoder()->Render(messages, options);
  if (!text.ok()) return absl::OkStatus();  // Encode says why
  return CheckTextBytes(context, "messages", text->size());
}

absl::Status FillCommon(const ApiContext& context, const RequestCommon& request,
                        GenerationPlan* plan) {
  SLUICE_RETURN_IF_ERROR(CheckModel(context, request.model));
  plan->api = request.api;
  plan->request_id = request.request_id;
  plan->model = request.model.empty() ? context.model_name() : request.model;
  if (request.tenant.size() > kMaxTenantBytes) {
    const char* param = request.api == RequestApi::kGrpc ? "tenant" : "cache_salt";
    return InvalidParameter(param, absl::StrCat(param, " may have at most ", kMaxTenantBytes,
                                                " bytes, got ", request.tenant.size()));
  }
  plan->tenant = request.tenant;
  plan->parsed_at = MonotonicNow();
  plan->received_at =
      request.received_at == absl::InfinitePast() ? plan->parsed_at : request.received_at;
  plan->deadline =
      std::min(request.deadline, plan->received_at + context.options().request_timeout);
  if (plan->deadline <= plan->parsed_at) {
    return MakeError(ErrorKind::kDeadline,
                     "the request's deadline passed before it was tokenized (stage tokenize)");
  }
  SLUICE_RETURN_IF_ERROR(FillSampling(context, request.sampling, plan));
  plan->output.return_token_ids = request.return_token_ids;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> CheckedIds(const ApiContext& context, absl::string_view param,
                                                const std::vector<int64_t>& ids) {
  std::vector<TokenId> tokens;
  tokens.reserve(ids.size());
  for (int64_t id : ids) {
    SLUICE_RETURN_IF_ERROR(CheckTokenId(context.tokenizer(), param, id));
    tokens.push_back(static_cast<TokenId>(id));
  }
  return tokens;
}

// Refuses ids that cannot fit the context before any of them is looked at.
absl::Status CheckNumIds(int64_t max_model_len, absl::string_view param, size_t num_ids) {
  if (static_cast<int64_t>(num_ids) <= max_model_len) return absl::OkStatus();
  return MakeError(ErrorKind::kContextLength,
                   absl::StrCat("This model's maximum context length is ", max_model_len,
                                " tokens. However, ", param, " holds ", num_ids, "."),
                   param);
}

absl::Status CheckNumChoices(const ApiContext& context, size_t num_prompts, int n) {
  const int64_t choices = static_cast<int64_t>(num_prompts) * n;
  if (choices <= context.options().max_choices) return absl::OkStatus();
  return InvalidParameter(num_prompts > 1 ? "prompt" : "n",
                          absl::StrCat("prompts times n must be at most ",
                                       context.options().max_choices, ", got ", choices));
}

std::vector<ChatMessage> WithKnownRoles(std::vector<ChatMessage> messages) {
  for (ChatMessage& message : messages) {
    if (message.role == "developer") message.role = "system";
  }
  return messages;
}

absl::Status NamedMessages(const absl::Status& status) {
  if (status.code() != absl::StatusCode::kInvalidArgument) return status;
  return InvalidParameter("messages", status.message());
}

absl::StatusOr<std::vector<TokenId>> EncodeChat(const ApiContext& context,
                                                std::vector<ChatMessage> messages,
                                                const ChatOptions& options) {
  if (context.chat_encoder() == nullptr) {
    return MakeError(ErrorKind::kUnsupported, "this model has no chat format; use completions");
  }
  if (messages.empty()) return InvalidParameter("messages", "messages must not be empty");
  if (messages.size() > kMaxMessages) {
    return InvalidParameter("messages", absl::StrCat("messages may hold at most ", kMaxMessages));
  }
  messages = WithKnownRoles(std::move(messages));
  if (options.continue_final_message) {
    if (messages.size() < 2 || messages.back().role != "assistant") {
      return InvalidParameter("messages",
                              "an answer can only be continued from a last assistant message");
    }
    if (context.chat_encoder()->AnswerStart(messages, options) ==
        ChatEncoder::Start::kInReasoning) {
      return MakeError(ErrorKind::kUnsupported,
                       "continuing an answer is not served while the model starts by thinking",
                       "messages");
    }
  }
  SLUICE_RETURN_IF_ERROR(CheckChatBytes(context, messages, options));
  absl::StatusOr<std::vector<TokenId>> tokens = context.chat_encoder()->Encode(messages, options);
  if (!tokens.ok()) return NamedMessages(tokens.status());
  return tokens;
}

}  // namespace

int64_t GenerationPlan::num_prompt_tokens() const {
  int64_t total = 0;
  for (const auto& prompt : prompts) total += static_cast<int64_t>(prompt.size());
  return total;
}

absl::Status CheckModel(const ApiContext& context, const std::string& model) {
  if (model.empty() || context.ServesModel(model)) return absl::OkStatus();
  return MakeError(ErrorKind::kModelNotFound,
                   absl::StrCat("The model `", model, "` does not exist."), "model");
}

absl::StatusOr<GenerationPlan> PlanCompletion(const ApiContext& context,
                                              const CompletionRequest& request) {
  GenerationPlan plan;
  const int64_t max_model_len = context.MaxModelLen();  // read once: it changes with the cluster
  SLUICE_RETURN_IF_ERROR(FillCommon(context, request, &plan));
  if (request.prompts.empty()) return InvalidParameter("prompt", "prompt must not be empty");
  SLUICE_RETURN_IF_ERROR(CheckNumChoices(context, request.prompts.size(), plan.n));
  if (request.echo && request.sampling.logprobs) {
    return MakeError(ErrorKind::kUnsupported,
                     "echo together with logprobs is not served: prompts have no logprobs", "echo");
  }
  for (const PromptInput& prompt : request.prompts) {
    if (const auto* text = std::get_if<std::string>(&prompt)) {
      SLUICE_RETURN_IF_ERROR(CheckTextBytes(context, "prompt", text->size()));
      plan.prompts.push_back(
          context.tokenizer().EncodePromptUpTo(*text, static_cast<size_t>(max_model_len)));
      if (request.echo) plan.echo_texts.push_back(*text);
      continue;
    }
    const auto& ids = std::get<std::vector<int64_t>>(prompt);
    SLUICE_RETURN_IF_ERROR(CheckNumIds(max_model_len, "prompt", ids.size()));
    SLUICE_ASSIGN_OR_RETURN(std::vector<TokenId> tokens, CheckedIds(context, "prompt", ids));
    if (request.echo) {
      plan.echo_texts.push_back(
          context.tokenizer().Decode(tokens, request.sampling.skip_special_tokens));
    }
    plan.prompts.push_back(std::move(tokens));
  }
  SLUICE_RETURN_IF_ERROR(FillMaxTokens(max_model_len, request.sampling, "prompt", &plan));
  return plan;
}

absl::StatusOr<GenerationPlan> PlanChat(const ApiContext& context, const ChatRequest& request) {
  GenerationPlan plan;
  SLUICE_RETURN_IF_ERROR(FillCommon(context, request, &plan));
  SLUICE_RETURN_IF_ERROR(CheckNumChoices(context, 1, plan.n));
  ChatOptions options;
  options.add_generation_prompt = request.add_generation_prompt;
  options.thinking = request.thinking;
  options.continue_final_message = request.continue_final_message;
  const int64_t max_model_len = context.MaxModelLen();
  options.max_tokens = static_cast<size_t>(max_model_len);
  SLUICE_ASSIGN_OR_RETURN(std::vector<TokenId> tokens,
                          EncodeChat(context, request.messages, options));
  plan.prompts.push_back(std::move(tokens));
  plan.output.reasoning_start = context.chat_encoder()->AnswerStart(request.messages, options);
  SLUICE_RETURN_IF_ERROR(FillMaxTokens(max_model_len, request.sampling, "messages", &plan));
  return plan;
}

absl::StatusOr<std::vector<TokenId>> Tokenize(const ApiContext& context,
                                              const TokenizeRequest& request) {
  SLUICE_RETURN_IF_ERROR(CheckModel(context, request.model));
  if (const auto* text = std::get_if<std::string>(&request.input)) {
    SLUICE_RETURN_IF_ERROR(CheckTextBytes(context, "prompt", text->size()));
    return request.add_special_tokens ? context.tokenizer().EncodePrompt(*text)
                                      : context.tokenizer().Encode(*text, AddedTokens::kMatch);
  }
  ChatOptions options;
  options.add_generation_prompt = request.add_generation_prompt;
  options.thinking = request.thinking;
  return EncodeChat(context, std::get<std::vector<ChatMessage>>(request.input), options);
}

absl::Status CheckDetokenize(const ApiContext& context, const std::string& model,
                             size_t num_tokens) {
  SLUICE_RETURN_IF_ERROR(CheckModel(context, model));
  return CheckNumIds(context.MaxModelLen(), "tokens", num_tokens);
}

absl::StatusOr<std::string> Detokenize(const ApiContext& context,
                                       const DetokenizeRequest& request) {
  SLUICE_RETURN_IF_ERROR(CheckDetokenize(context, request.model, request.tokens.size()));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                          CheckedIds(context, "tokens", request.tokens));
  return context.tokenizer().Decode(tokens, /*skip_special_tokens=*/false);
}

}  // namespace sluice::router
