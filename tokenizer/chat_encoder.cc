#include "tokenizer/chat_encoder.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "tokenizer/chat_format.h"

namespace sluice {
namespace {

class FormatChatEncoder final : public ChatEncoder {
 public:
  FormatChatEncoder(const Tokenizer& tokenizer, ChatFormat format)
      : tokenizer_(tokenizer), format_(format) {}

  absl::StatusOr<std::vector<TokenId>> Encode(const std::vector<ChatMessage>& messages,
                                              const ChatOptions& options) const override {
    SLUICE_ASSIGN_OR_RETURN(const ChatText chat, RenderChat(format_, messages, options));
    std::vector<TokenId> ids;
    for (const ChatText::Segment& segment : chat.segments()) {
      if (ids.size() > options.max_tokens) break;
      if (segment.is_control) {
        const std::optional<TokenId> id = tokenizer_.AddedTokenId(segment.text);
        if (!id.has_value()) {
          return absl::FailedPreconditionError(
              absl::StrCat("the model's tokenizer has no token '", segment.text, "'"));
        }
        ids.push_back(*id);
      } else {
        const std::vector<TokenId> text = tokenizer_.EncodeUpTo(segment.text, AddedTokens::kIgnore,
                                                                options.max_tokens - ids.size());
        ids.insert(ids.end(), text.begin(), text.end());
      }
    }
    return ids;
  }

  absl::StatusOr<std::string> Render(const std::vector<ChatMessage>& messages,
                                     const ChatOptions& options) const override {
    SLUICE_ASSIGN_OR_RETURN(const ChatText chat, RenderChat(format_, messages, options));
    return chat.ToString();
  }

  Start AnswerStart(const std::vector<ChatMessage>& messages,
                    const ChatOptions& options) const override {
    if (options.continue_final_message && !messages.empty()) {
      const Start start =
          StartAfter(absl::MakeConstSpan(messages).first(messages.size() - 1), options);
      return start == Start::kModelDecides ? Start::kInContent : start;
    }
    if (!options.add_generation_prompt) return Start::kInContent;
    return StartAfter(messages, options);
  }

  Start AnswerStart(const ChatOptions& options) const override {
    ChatMessage user;
    user.role = "user";
    return AnswerStart({user}, options);
  }

  ChatFormat format() const override { return format_; }

 private:
  // With a generation prompt after these messages.
  Start StartAfter(absl::Span<const ChatMessage> messages, const ChatOptions& options) const {
    const absl::string_view last_role = LastRoleInPlace(messages);
    switch (format_) {
      case ChatFormat::kV2:
      case ChatFormat::kV3:
        return Start::kInContent;
      case ChatFormat::kTiny:
        return Start::kModelDecides;
      case ChatFormat::kR1:
        return last_role == "tool" ? Start::kModelDecides : Start::kInReasoning;
      case ChatFormat::kV31:
        return options.thinking.value_or(false) && last_role == "user" ? Start::kInReasoning
                                                                       : Start::kInContent;
    }
    return Start::kInContent;
  }

  const Tokenizer& tokenizer_;
  const ChatFormat format_;
};

absl::StatusOr<ChatFormat> FormatOfTemplate(const std::string& chat_template) {
  const auto has = [&](absl::string_view marker) {
    return absl::StrContains(chat_template, marker);
  };
  if (chat_template.empty()) {
    return absl::UnimplementedError(
        "the model has no chat template (chat_template in tokenizer_config.json, or "
        "chat_template.jinja)");
  }
  if (has("<｜Assistant｜>")) {
    if (has("thinking") && has("</think>")) return ChatFormat::kV31;
    if (has("<｜Assistant｜><think>")) return ChatFormat::kR1;
    if (has("</think>")) return ChatFormat::kTiny;
    return ChatFormat::kV3;
  }
  if (has("User: ") && has("Assistant:")) return ChatFormat::kV2;
  return absl::UnimplementedError(
      "the model's chat template is of no known kind (DeepSeek-V2, V3, R1, V3.1)");
}

}  // namespace

absl::string_view ChatFormatName(ChatFormat format) {
  switch (format) {
    case ChatFormat::kV2:
      return "deepseek-v2";
    case ChatFormat::kV3:
      return "deepseek-v3";
    case ChatFormat::kR1:
      return "deepseek-r1";
    case ChatFormat::kV31:
      return "deepseek-v3.1";
    case ChatFormat::kTiny:
      return "deepseek-tiny";
  }
  return "unknown";
}

absl::StatusOr<std::unique_ptr<ChatEncoder>> ChatEncoder::Create(const Tokenizer& tokenizer) {
  SLUICE_ASSIGN_OR_RETURN(const ChatFormat format, FormatOfTemplate(tokenizer.chat_template()));
  return CreateFor(tokenizer, format);
}

absl::StatusOr<std::unique_ptr<ChatEncoder>> ChatEncoder::CreateFor(const Tokenizer& tokenizer,
                                                                    ChatFormat format) {
  for (const absl::string_view token : RequiredControlTokens(format)) {
    if (!tokenizer.AddedTokenId(token).has_value()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "chat format ", ChatFormatName(format), ": the tokenizer has no token '", token, "'"));
    }
  }
  return std::make_unique<FormatChatEncoder>(tokenizer, format);
}

}  // namespace sluice
