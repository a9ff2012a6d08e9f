// Chat messages -> token ids in the model's chat format (DeepSeek-V2, V3, R1, V3.1; deepseek-tiny
// uses the R1 form without forced thinking). Immutable; any thread.
//
// Message contents are encoded with added-token matching off and spliced between the control
// tokens: a user who writes "<｜Assistant｜>" sends those characters, not the token. Hugging Face's
// templates do otherwise; docs/decisions/ has the reason.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tokenizer/tokenizer.h"

namespace sluice {

struct ChatToolCall {
  std::string id;
  std::string type = "function";
  std::string name;
  std::string arguments;  // JSON text
};

struct ChatMessage {
  std::string role;  // system (or developer: the same), user, assistant, tool
  std::string content;
  std::string reasoning_content;
  std::vector<ChatToolCall> tool_calls;
};

struct ChatOptions {
  bool add_generation_prompt = true;
  std::optional<bool> thinking;  // V3.1 only: unset means its default, off
  // The last message, an assistant's, is the beginning of the answer: it stands where the answer
  // will, as a finished one would, and stays open. There is a generation prompt then.
  bool continue_final_message = false;
  // Encode may stop once there are more than these: for who refuses that many.
  size_t max_tokens = Tokenizer::kAllTokens;
};

enum class ChatFormat {
  kV2,    // V2, V2-Lite: roles as plain text
  kV3,    // V3, V3-0324, V2.5
  kR1,    // R1: the prompt opens <think>
  kV31,   // V3.1: the prompt opens or closes <think>
  kTiny,  // deepseek-tiny, R1-0528: as R1, but the model opens <think> itself
};
absl::string_view ChatFormatName(ChatFormat format);

class ChatEncoder {
 public:
  virtual ~ChatEncoder() = default;

  // Chooses the format by markers in the tokenizer's chat template; UNIMPLEMENTED if it is none of
  // ours. `tokenizer` must outlive the encoder.
  static absl::StatusOr<std::unique_ptr<ChatEncoder>> Create(const Tokenizer& tokenizer);
  static absl::StatusOr<std::unique_ptr<ChatEncoder>> CreateFor(const Tokenizer& tokenizer,
                                                                ChatFormat format);

  // INVALID_ARGUMENT for an unknown role, an empty conversation, tool messages in a format that has
  // none, or a last message that is no beginning of an answer but should be continued.
  // FAILED_PRECONDITION if the tokenizer lacks a control token that the conversation needs.
  virtual absl::StatusOr<std::vector<TokenId>> Encode(const std::vector<ChatMessage>& messages,
                                                      const ChatOptions& options) const = 0;
  // The text Hugging Face's template would give; for golden tests and people.
  virtual absl::StatusOr<std::string> Render(const std::vector<ChatMessage>& messages,
                                             const ChatOptions& options) const = 0;
  // How the answer begins: inside <think>, after it, or the model decides. It depends on the
  // messages too: after tool results there is no generation prompt, so nothing opens <think>. An
  // answer that is continued has begun with content, or stands inside <think> where it does not
  // belong.
  enum class Start { kInReasoning, kInContent, kModelDecides };
  virtual Start AnswerStart(const std::vector<ChatMessage>& messages,
                            const ChatOptions& options) const = 0;
  // The same for a conversation that ends with a user's message.
  virtual Start AnswerStart(const ChatOptions& options) const = 0;
  virtual ChatFormat format() const = 0;
};

}  // namespace sluice
