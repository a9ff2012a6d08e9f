#include "services/router/http/json_request.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "services/router/api/error_table.h"
#include "services/router/http/chat_messages.h"
#include "services/router/http/json_reader.h"

namespace sluice::router {
namespace {

// OpenAI's default for completions; chat answers run to the end of the context.
constexpr int64_t kDefaultCompletionTokens = 16;

// Asking for one of these and getting an answer without it would be a silent lie.
constexpr const char* kRefusedFields[] = {"suffix",
                                          "audio",
                                          "web_search_options",
                                          "functions",
                                          "guided_json",
                                          "guided_regex",
                                          "guided_choice",
                                          "guided_grammar",
                                          "structured_outputs",
                                          "prompt_logprobs",
                                          "use_beam_search",
                                          "prompt_embeds",
                                          "truncate_prompt_tokens",
                                          "tools"};

constexpr char kOmitIt[] = "is not supported in this version; omit it";

// Whether the client itself says that the answer is to use none of the tools it lists.
bool AsksForNoCalls(const JsonObjectReader& reader, absl::string_view choice_field) {
  const std::optional<JsonElement> choice = reader.Find(choice_field);
  return choice.has_value() && AsString(*choice) == absl::string_view("none");
}

absl::Status RefuseUnserved(const JsonObjectReader& reader) {
  for (const absl::string_view field : kRefusedFields) {
    const std::optional<JsonElement> element = reader.Find(field);
    if (!element.has_value() || AsksForNothing(*element)) continue;
    if (field == "tools" && AsksForNoCalls(reader, "tool_choice")) continue;
    if (field == "functions" && AsksForNoCalls(reader, "function_call")) continue;
    return MakeError(ErrorKind::kUnsupported, absl::StrCat("`", field, "` ", kOmitIt), field);
  }
  if (const auto format = reader.Find("response_format")) {
    simdjson::dom::object object;
    if (format->get(object) != simdjson::SUCCESS) return WrongType("response_format", "an object");
    std::string type;
    SLUICE_RETURN_IF_ERROR(JsonObjectReader(object, "response_format.").Read("type", &type));
    if (type != "text") {
      return MakeError(ErrorKind::kUnsupported,
                       absl::StrCat("`response_format` of type '", type, "' ", kOmitIt),
                       "response_format");
    }
  }
  for (const char* field : {"tool_choice", "function_call"}) {
    const std::optional<JsonElement> choice = reader.Find(field);
    if (!choice.has_value()) continue;
    const std::optional<absl::string_view> text = AsString(*choice);
    if (!text.has_value() || (*text != "none" && *text != "auto")) {
      return MakeError(ErrorKind::kUnsupported,
                       absl::StrCat("`", field, "` other than none and auto ", kOmitIt), field);
    }
  }
  if (const auto modalities = reader.Find("modalities")) {
    simdjson::dom::array array;
    if (modalities->get(array) != simdjson::SUCCESS) return WrongType("modalities", "a list");
    for (const JsonElement modality : array) {
      const std::optional<absl::string_view> text = AsString(modality);
      if (!text.has_value() || *text != "text") {
        return MakeError(ErrorKind::kUnsupported, "only the modality 'text' is served",
                         "modalities");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReadSeed(const JsonObjectReader& reader, std::optional<uint64_t>* seed) {
  const std::optional<JsonElement> element = reader.Find("seed");
  if (!element.has_value()) return absl::OkStatus();
  uint64_t value;
  if (element->get(value) == simdjson::SUCCESS) {
    *seed = value;
    return absl::OkStatus();
  }
  const std::optional<int64_t> integer = AsInteger(*element);
  if (!integer.has_value()) return WrongType("seed", "an integer");
  *seed = static_cast<uint64_t>(*integer);  // negative seeds are as good as any
  return absl::OkStatus();
}

absl::Status ReadStop(const JsonObjectReader& reader, std::vector<std::string>* stop) {
  const std::optional<JsonElement> element = reader.Find("stop");
  if (!element.has_value()) return absl::OkStatus();
  if (const auto text = AsString(*element)) {
    stop->emplace_back(*text);
    return absl::OkStatus();
  }
  simdjson::dom::array array;
  if (element->get(array) != simdjson::SUCCESS) {
    return WrongType("stop", "a string or a list of strings");
  }
  for (const JsonElement child : array) {
    const std::optional<absl::string_view> text = AsString(child);
    if (!text.has_value()) return WrongType("stop", "a string or a list of strings");
    stop->emplace_back(*text);
  }
  return absl::OkStatus();
}

absl::Status ReadLogitBias(const JsonObjectReader& reader,
                           std::vector<std::pair<int64_t, double>>* logit_bias) {
  const std::optional<JsonElement> element = reader.Find("logit_bias");
  if (!element.has_value()) return absl::OkStatus();
  simdjson::dom::object object;
  if (element->get(object) != simdjson::SUCCESS) {
    return WrongType("logit_bias", "an object of token id to number");
  }
  for (const auto field : object) {
    int64_t id;
    double bias;
    if (!absl::SimpleAtoi(absl::string_view(field.key.data(), field.key.size()), &id) ||
        field.value.get(bias) != simdjson::SUCCESS) {
      return WrongType("logit_bias", "an object of token id to number");
    }
    logit_bias->emplace_back(id, bias);
  }
  return absl::OkStatus();
}

absl::Status ReadSampling(const JsonObjectReader& reader, SamplingRequest* sampling) {
  SLUICE_RETURN_IF_ERROR(reader.Read("temperature", &sampling->temperature));
  SLUICE_RETURN_IF_ERROR(reader.Read("top_p", &sampling->top_p));
  SLUICE_RETURN_IF_ERROR(reader.Read("top_k", &sampling->top_k));
  SLUICE_RETURN_IF_ERROR(reader.Read("min_p", &sampling->min_p));
  SLUICE_RETURN_IF_ERROR(reader.Read("presence_penalty", &sampling->presence_penalty));
  SLUICE_RETURN_IF_ERROR(reader.Read("frequency_penalty", &sampling->frequency_penalty));
  SLUICE_RETURN_IF_ERROR(reader.Read("repetition_penalty", &sampling->repetition_penalty));
  SLUICE_RETURN_IF_ERROR(reader.Read("n", &sampling->n));
  SLUICE_RETURN_IF_ERROR(reader.Read("max_tokens", &sampling->max_tokens));
  if (reader.Find("max_completion_tokens").has_value()) {  // wins
    SLUICE_RETURN_IF_ERROR(reader.Read("max_completion_tokens", &sampling->max_tokens));
    sampling->max_tokens_field = "max_completion_tokens";
  }
  SLUICE_RETURN_IF_ERROR(reader.Read("min_tokens", &sampling->min_tokens));
  SLUICE_RETURN_IF_ERROR(reader.Read("stop_token_ids", &sampling->stop_token_ids));
  SLUICE_RETURN_IF_ERROR(reader.Read("ignore_eos", &sampling->ignore_eos));
  SLUICE_RETURN_IF_ERROR(reader.Read("skip_special_tokens", &sampling->skip_special_tokens));
  SLUICE_RETURN_IF_ERROR(
      reader.Read("include_stop_str_in_output", &sampling->include_stop_str_in_output));
  SLUICE_RETURN_IF_ERROR(ReadSeed(reader, &sampling->seed));
  SLUICE_RETURN_IF_ERROR(ReadStop(reader, &sampling->stop));
  SLUICE_RETURN_IF_ERROR(ReadLogitBias(reader, &sampling->logit_bias));
  std::optional<int64_t> best_of;
  SLUICE_RETURN_IF_ERROR(reader.Read("best_of", &best_of));
  if (best_of.has_value() && *best_of != 1 && *best_of != sampling->n.value_or(1)) {
    return MakeError(ErrorKind::kUnsupported, "best_of other than n is not served", "best_of");
  }
  return absl::OkStatus();
}

absl::Status ReadStream(const JsonObjectReader& reader, StreamOptions* stream) {
  SLUICE_RETURN_IF_ERROR(reader.Read("stream", &stream->stream));
  SLUICE_RETURN_IF_ERROR(reader.Read("include_timings", &stream->include_timings));
  const std::optional<JsonElement> element = reader.Find("stream_options");
  if (!element.has_value()) return absl::OkStatus();
  simdjson::dom::object object;
  if (element->get(object) != simdjson::SUCCESS) return WrongType("stream_options", "an object");
  const JsonObjectReader options(object, "stream_options.");
  SLUICE_RETURN_IF_ERROR(options.Read("include_usage", &stream->include_usage));
  SLUICE_RETURN_IF_ERROR(options.Read("continuous_usage_stats", &stream->continuous_usage_stats));
  return absl::OkStatus();
}

absl::Status ReadCommon(const JsonObjectReader& reader, RequestCommon* common,
                        StreamOptions* stream) {
  SLUICE_RETURN_IF_ERROR(RefuseUnserved(reader));
  SLUICE_RETURN_IF_ERROR(reader.Read("model", &common->model));
  SLUICE_RETURN_IF_ERROR(ReadSampling(reader, &common->sampling));
  SLUICE_RETURN_IF_ERROR(ReadStream(reader, stream));
  SLUICE_RETURN_IF_ERROR(reader.Read("return_token_ids", &common->return_token_ids));
  return reader.Read("cache_salt", &common->tenant);
}

// "text", ["a", "b"], [1, 2] or [[1], [2]].
absl::Status ReadPrompts(const JsonObjectReader& reader, std::vector<PromptInput>* prompts) {
  constexpr char kExpected[] = "a string, a list of strings, token ids or a list of token ids";
  const std::optional<JsonElement> element = reader.Find("prompt");
  if (!element.has_value()) return InvalidParameter("prompt", "prompt is required");
  if (const auto text = AsString(*element)) {
    prompts->emplace_back(std::string(*text));
    return absl::OkStatus();
  }
  simdjson::dom::array array;
  if (element->get(array) != simdjson::SUCCESS) return WrongType("prompt", kExpected);
  if (array.begin() == array.end()) return InvalidParameter("prompt", "prompt must not be empty");
  const JsonElement first = *array.begin();
  if (first.is_number()) {
    SLUICE_ASSIGN_OR_RETURN(std::vector<int64_t> ids, AsIntegers(*element, "prompt"));
    prompts->emplace_back(std::move(ids));
    return absl::OkStatus();
  }
  for (const JsonElement child : array) {
    if (const auto text = AsString(child); text.has_value() && first.is_string()) {
      prompts->emplace_back(std::string(*text));
    } else if (child.is_array() && first.is_array()) {
      SLUICE_ASSIGN_OR_RETURN(std::vector<int64_t> ids, AsIntegers(child, "prompt"));
      prompts->emplace_back(std::move(ids));
    } else {
      return WrongType("prompt", kExpected);
    }
  }
  return absl::OkStatus();
}

// In rising precedence: reasoning_effort, DeepSeek's thinking{type}, chat_template_kwargs.
absl::Status ReadThinking(const JsonObjectReader& reader, std::optional<bool>* thinking) {
  std::string effort;
  SLUICE_RETURN_IF_ERROR(reader.Read("reasoning_effort", &effort));
  if (!effort.empty()) *thinking = effort != "none";
  if (const auto element = reader.Find("thinking")) {
    simdjson::dom::object object;
    if (element->get(object) != simdjson::SUCCESS) return WrongType("thinking", "an object");
    std::string type;
    SLUICE_RETURN_IF_ERROR(JsonObjectReader(object, "thinking.").Read("type", &type));
    if (type == "enabled") {
      *thinking = true;
    } else if (type == "disabled") {
      *thinking = false;
    } else {
      return WrongType("thinking.type", "enabled or disabled");
    }
  }
  if (const auto element = reader.Find("chat_template_kwargs")) {
    simdjson::dom::object object;
    if (element->get(object) != simdjson::SUCCESS) {
      return WrongType("chat_template_kwargs", "an object");
    }
    const JsonObjectReader kwargs(object, "chat_template_kwargs.");
    SLUICE_RETURN_IF_ERROR(kwargs.Read("enable_thinking", thinking));
    SLUICE_RETURN_IF_ERROR(kwargs.Read("thinking", thinking));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CompletionBody> ParseCompletionBody(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const auto document, JsonDocument::ParseObject(body));
  const JsonObjectReader reader(document->root());
  CompletionBody result;
  CompletionRequest& request = result.request;
  SLUICE_RETURN_IF_ERROR(ReadCommon(reader, &request, &result.stream));
  SLUICE_RETURN_IF_ERROR(ReadPrompts(reader, &request.prompts));
  SLUICE_RETURN_IF_ERROR(reader.Read("echo", &request.echo));
  if (!request.sampling.max_tokens.has_value()) {
    request.sampling.max_tokens = kDefaultCompletionTokens;
  }
  SLUICE_RETURN_IF_ERROR(reader.Read("logprobs", &request.sampling.top_logprobs));
  request.sampling.top_logprobs_field = "logprobs";
  request.sampling.logprobs = request.sampling.top_logprobs.has_value();
  return result;
}

absl::StatusOr<ChatBody> ParseChatBody(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const auto document, JsonDocument::ParseObject(body));
  const JsonObjectReader reader(document->root());
  ChatBody result;
  ChatRequest& request = result.request;
  SLUICE_RETURN_IF_ERROR(ReadCommon(reader, &request, &result.stream));
  SLUICE_RETURN_IF_ERROR(reader.Read("logprobs", &request.sampling.logprobs));
  SLUICE_RETURN_IF_ERROR(reader.Read("top_logprobs", &request.sampling.top_logprobs));
  SLUICE_RETURN_IF_ERROR(ReadThinking(reader, &request.thinking));
  SLUICE_RETURN_IF_ERROR(reader.Read("add_generation_prompt", &request.add_generation_prompt));
  const std::optional<JsonElement> messages = reader.Find("messages");
  if (!messages.has_value()) return InvalidParameter("messages", "messages is required");
  SLUICE_ASSIGN_OR_RETURN(ChatMessageList list, ReadMessages(*messages));
  request.messages = std::move(list.messages);
  request.continue_final_message = list.continue_final_message;
  SLUICE_RETURN_IF_ERROR(reader.Read("continue_final_message", &request.continue_final_message));
  return result;
}

absl::StatusOr<TokenizeRequest> ParseTokenizeBody(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const auto document, JsonDocument::ParseObject(body));
  const JsonObjectReader reader(document->root());
  TokenizeRequest request;
  SLUICE_RETURN_IF_ERROR(reader.Read("model", &request.model));
  SLUICE_RETURN_IF_ERROR(reader.Read("add_special_tokens", &request.add_special_tokens));
  SLUICE_RETURN_IF_ERROR(reader.Read("add_generation_prompt", &request.add_generation_prompt));
  SLUICE_RETURN_IF_ERROR(ReadThinking(reader, &request.thinking));
  if (const auto messages = reader.Find("messages")) {
    SLUICE_ASSIGN_OR_RETURN(ChatMessageList list, ReadMessages(*messages));
    request.input = std::move(list.messages);
    return request;
  }
  if (!reader.Find("prompt").has_value()) {
    return InvalidParameter("prompt", "prompt or messages is required");
  }
  std::string prompt;
  SLUICE_RETURN_IF_ERROR(reader.Read("prompt", &prompt));
  request.input = std::move(prompt);
  return request;
}

absl::StatusOr<DetokenizeRequest> ParseDetokenizeBody(absl::string_view body) {
  SLUICE_ASSIGN_OR_RETURN(const auto document, JsonDocument::ParseObject(body));
  const JsonObjectReader reader(document->root());
  DetokenizeRequest request;
  SLUICE_RETURN_IF_ERROR(reader.Read("model", &request.model));
  if (!reader.Find("tokens").has_value()) {
    return InvalidParameter("tokens", "tokens is required");
  }
  SLUICE_RETURN_IF_ERROR(reader.Read("tokens", &request.tokens));
  return request;
}

}  // namespace sluice::router
