#include "services/router/http/openai_format.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sluice::router {
namespace {

const char* FinishName(FinishReason reason) {
  return reason == FinishReason::kLength ? "length" : "stop";
}

void AppendFinish(const ChoiceDelta& delta, JsonWriter* json) {
  json->Key("finish_reason");
  if (delta.finish == FinishReason::kNone) {
    json->Null();
  } else {
    json->String(FinishName(delta.finish));
  }
  if (!delta.matched_stop.empty()) json->Key("stop_reason").String(delta.matched_stop);
}

void AppendMilliseconds(absl::Duration duration, JsonWriter* json) {
  json->Raw(absl::StrFormat("%.3f", absl::ToDoubleMilliseconds(duration)));
}

void AppendTimings(const RequestSummary& summary, JsonWriter* json) {
  json->Key("timings").BeginObject().Key("time_to_first_token_ms");
  AppendMilliseconds(summary.time_to_first_token, json);
  json->Key("total_ms");
  AppendMilliseconds(summary.total, json);
  json->Key("stages_ms").BeginObject();
  for (const char* stage : kTimeStages) {
    const auto it = summary.stages.find(stage);
    if (it == summary.stages.end()) continue;
    json->Key(stage);
    AppendMilliseconds(it->second, json);
  }
  json->EndObject().EndObject();
}

void AppendUsage(const RequestSummary& summary, JsonWriter* json) {
  json->Key("usage")
      .BeginObject()
      .Key("prompt_tokens")
      .Int(summary.prompt_tokens)
      .Key("completion_tokens")
      .Int(summary.completion_tokens)
      .Key("total_tokens")
      .Int(summary.prompt_tokens + summary.completion_tokens)
      .Key("prompt_tokens_details")
      .BeginObject()
      .Key("cached_tokens")
      .Int(summary.cached_tokens)
      .EndObject()
      .Key("completion_tokens_details")
      .BeginObject()
      .Key("reasoning_tokens")
      .Int(summary.reasoning_tokens)
      .EndObject()
      .Key("prompt_cache_hit_tokens")
      .Int(summary.cached_tokens)
      .Key("prompt_cache_miss_tokens")
      .Int(summary.prompt_tokens - summary.cached_tokens)
      .EndObject();
}

// What is known before the end.
void AppendRunningUsage(const ChoiceDelta& delta, JsonWriter* json) {
  json->Key("usage")
      .BeginObject()
      .Key("prompt_tokens")
      .Int(delta.prompt_tokens)
      .Key("completion_tokens")
      .Int(delta.completion_tokens)
      .Key("total_tokens")
      .Int(delta.prompt_tokens + delta.completion_tokens)
      .EndObject();
}

int64_t CountChars(absl::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

}  // namespace

OpenAiFormatter::OpenAiFormatter(const Tokenizer& tokenizer, const GenerationPlan& plan,
                                 FormatOptions options)
    : tokenizer_(tokenizer),
      plan_(plan),
      options_(std::move(options)),
      chunk_head_(
          Head(options_.kind == ApiKind::kChat ? "chat.completion.chunk" : "text_completion")),
      choices_(plan.num_choices()) {
  for (int i = 0; i < plan.num_choices(); ++i) {
    choices_[i].collected.index = i;
    if (!plan.echo_texts.empty()) {
      choices_[i].text_offset_chars = CountChars(plan.echo_texts[i / plan.n]);
    }
  }
}

// Everything before "choices", the same in each chunk: `{"id":...,"object":...`, not closed.
std::string OpenAiFormatter::Head(absl::string_view object) const {
  std::string head;
  JsonWriter json(&head);
  const bool chat = options_.kind == ApiKind::kChat;
  json.BeginObject()
      .Key("id")
      .String(absl::StrCat(chat ? "chatcmpl-" : "cmpl-", options_.request_id))
      .Key("object")
      .String(object)
      .Key("created")
      .Int(options_.created_unix_seconds)
      .Key("model")
      .String(plan_.model)
      .Key("system_fingerprint")
      .String(options_.system_fingerprint);
  return head;
}

std::string OpenAiFormatter::Chunk(const ChoiceDelta& delta) {
  std::string out = chunk_head_;
  JsonWriter json(&out);
  json.Key("choices").BeginArray();
  if (options_.kind == ApiKind::kChat) {
    AppendChatChoice(delta, /*chunk=*/true, &json);
  } else {
    AppendCompletionChoice(delta, &json);
  }
  json.EndArray();
  if (options_.stream.include_usage) {
    if (options_.stream.continuous_usage_stats) {
      AppendRunningUsage(delta, &json);
    } else {
      json.Key("usage").Null();
    }
  }
  json.EndObject();
  return out;
}

std::string OpenAiFormatter::UsageChunk(const RequestSummary& summary) const {
  std::string out = chunk_head_;
  JsonWriter json(&out);
  json.Key("choices").BeginArray().EndArray();
  AppendUsage(summary, &json);
  if (options_.stream.include_timings) AppendTimings(summary, &json);
  json.EndObject();
  return out;
}

void OpenAiFormatter::Collect(const ChoiceDelta& delta) {
  ChoiceDelta& collected = choices_[delta.index].collected;
  collected.text += delta.text;
  collected.reasoning += delta.reasoning;
  collected.tokens.insert(collected.tokens.end(), delta.tokens.begin(), delta.tokens.end());
  if (delta.finish != FinishReason::kNone) collected.finish = delta.finish;
  if (!delta.matched_stop.empty()) collected.matched_stop = delta.matched_stop;
}

std::string OpenAiFormatter::Full(const RequestSummary& summary) {
  const bool chat = options_.kind == ApiKind::kChat;
  std::string out = Head(chat ? "chat.completion" : "text_completion");
  JsonWriter json(&out);
  json.Key("choices").BeginArray();
  for (ChoiceState& choice : choices_) {
    choice.collected.first = true;
    if (chat) {
      AppendChatChoice(choice.collected, /*chunk=*/false, &json);
    } else {
      AppendCompletionChoice(choice.collected, &json);
    }
  }
  json.EndArray();
  AppendUsage(summary, &json);
  if (options_.stream.include_timings) AppendTimings(summary, &json);
  json.EndObject();
  return out;
}

void OpenAiFormatter::AppendReasoning(const std::string& reasoning, JsonWriter* json) const {
  if (reasoning.empty()) return;
  json->Key("reasoning_content").String(reasoning);
}

void OpenAiFormatter::AppendChatChoice(const ChoiceDelta& delta, bool chunk, JsonWriter* json) {
  json->BeginObject().Key("index").Int(delta.index);
  json->Key(chunk ? "delta" : "message").BeginObject();
  // The role comes with the first token, never alone: clients take the first event for it.
  if (delta.first) json->Key("role").String("assistant");
  if (!chunk || !delta.text.empty() || (delta.first && delta.reasoning.empty())) {
    json->Key("content").String(delta.text);
  } else if (!delta.reasoning.empty()) {
    json->Key("content").Null();
  }
  AppendReasoning(delta.reasoning, json);
  json->EndObject();
  json->Key("logprobs");
  if (plan_.output.num_top_logprobs < 0) {
    json->Null();
  } else {
    AppendChatLogprobs(delta.tokens, json);
  }
  AppendFinish(delta, json);
  AppendTokenIds(delta, json);
  json->EndObject();
}

void OpenAiFormatter::AppendCompletionChoice(const ChoiceDelta& delta, JsonWriter* json) {
  json->BeginObject().Key("index").Int(delta.index).Key("text").String(delta.text);
  json->Key("logprobs");
  if (plan_.output.num_top_logprobs < 0) {
    json->Null();
  } else {
    AppendCompletionLogprobs(delta.tokens, &choices_[delta.index], json);
  }
  AppendFinish(delta, json);
  AppendTokenIds(delta, json);
  json->EndObject();
}

void OpenAiFormatter::AppendTokenIds(const ChoiceDelta& delta, JsonWriter* json) const {
  if (!plan_.output.return_token_ids) return;
  if (delta.first) {
    json->Key("prompt_token_ids").BeginArray();
    for (TokenId id : plan_.prompts[delta.index / plan_.n]) json->Int(id);
    json->EndArray();
  }
  json->Key("token_ids").BeginArray();
  for (const SampledToken& token : delta.tokens) json->Int(token.token);
  json->EndArray();
}

std::string OpenAiFormatter::TokenText(TokenId id) const {
  return tokenizer_.Decode(absl::MakeConstSpan(&id, 1), /*skip_special_tokens=*/false);
}

void OpenAiFormatter::AppendChatLogprobs(const std::vector<SampledToken>& tokens,
                                         JsonWriter* json) const {
  const auto append_token = [&](TokenId id, float logprob) {
    json->Key("token").String(TokenText(id)).Key("logprob").Float(logprob);
    json->Key("bytes").BeginArray();
    for (char byte : tokenizer_.TokenBytes(id)) json->Int(static_cast<unsigned char>(byte));
    json->EndArray();
  };
  json->BeginObject().Key("content").BeginArray();
  for (const SampledToken& token : tokens) {
    json->BeginObject();
    append_token(token.token, token.logprob);
    json->Key("top_logprobs").BeginArray();
    for (const TokenLogprob& top : token.top) {
      json->BeginObject();
      append_token(top.token, top.logprob);
      json->EndObject();
    }
    json->EndArray().EndObject();
  }
  json->EndArray().EndObject();
}

void OpenAiFormatter::AppendCompletionLogprobs(const std::vector<SampledToken>& tokens,
                                               ChoiceState* state, JsonWriter* json) const {
  json->BeginObject().Key("tokens").BeginArray();
  std::vector<int64_t> offsets;
  for (const SampledToken& token : tokens) {
    json->String(TokenText(token.token));
    offsets.push_back(state->text_offset_chars);
    // A character split over tokens counts where it begins.
    const bool is_text = !(plan_.output.skip_special_tokens && tokenizer_.IsSpecial(token.token));
    if (is_text) state->text_offset_chars += CountChars(tokenizer_.TokenBytes(token.token));
  }
  json->EndArray().Key("token_logprobs").BeginArray();
  for (const SampledToken& token : tokens) json->Float(token.logprob);
  json->EndArray().Key("top_logprobs");
  if (plan_.output.num_top_logprobs == 0) {
    json->Null();
  } else {
    json->BeginArray();
    for (const SampledToken& token : tokens) {
      json->BeginObject();
      // Two ids may print alike; a JSON object holds a key once, and the likelier comes first.
      std::vector<std::string> seen;
      const auto append = [&](TokenId id, float logprob) {
        std::string text = TokenText(id);
        if (std::find(seen.begin(), seen.end(), text) != seen.end()) return;
        json->Key(text).Float(logprob);
        seen.push_back(std::move(text));
      };
      for (const TokenLogprob& top : token.top) append(top.token, top.logprob);
      // The chosen token is always there, beyond the number asked for if it is not one of the best.
      append(token.token, token.logprob);
      json->EndObject();
    }
    json->EndArray();
  }
  json->Key("text_offset").BeginArray();
  for (int64_t offset : offsets) json->Int(offset);
  json->EndArray().EndObject();
}

std::string FormatError(const ApiError& error) {
  std::string out;
  JsonWriter json(&out);
  json.BeginObject().Key("error").BeginObject();
  json.Key("message").String(error.message).Key("type").String(error.row().type).Key("param");
  if (error.param.empty()) {
    json.Null();
  } else {
    json.String(error.param);
  }
  json.Key("code").String(error.row().code).EndObject().EndObject();
  return out;
}

}  // namespace sluice::router
