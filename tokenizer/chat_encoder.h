// Chat messages -> token ids in the model's chat format (DeepSeek-V2, V3, R1, V3.1; deepseek-tiny uses
// the R1 form without forced thinking). Immutable; any thread.
//
// Message contents are encoded with added-token matching off and spliced between the control tokens:
// a user who writes "<｜Assistant｜>" sends those characters, not the token. Hugging Face's templates
// do otherwise; docs/decisions/ has the reason.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tokenizer/tokenizer.h"

namespace sluice {

struct ChatToolCall {
  std::string id;
  std::string type = "function";
  std::string name;
  std::string arguments;  // JSON text
};

struct ChatMessage {
  std::string role;  // system, user, assistant, tool
  std::string content;
  std::string reasoning_content;
  std::vector<ChatToolCall> tool_calls;
};

struct ChatOptions {
  bool add_generation_prompt = true;
  std::optional<bool> thinking;  // V3.1 only: unset means its default, off
};

enum class ChatFormat { kV2, kV3, kR1, kV31, kTiny };

class ChatEncoder {
 public:
  virtual ~ChatEncoder() = default;

  // Chooses the format by markers in the tokenizer's chat template; UNIMPLEMENTED if it is none of ours.
  // `tokenizer` must outlive the encoder.
  static absl::StatusOr<std::unique_ptr<ChatEncoder>> Create(const Tokenizer& tokenizer);
  static absl::StatusOr<std::unique_ptr<ChatEncoder>> CreateFor(const Tokenizer& tokenizer,
                                                                ChatFormat format);

  // INVALID_ARGUMENT for an unknown role or an empty conversation.
  virtual absl::StatusOr<std::vector<TokenId>> Encode(const std::vector<ChatMessage>& messages,
                                                      const ChatOptions& options) const = 0;
  // The text Hugging Face's template would give; for golden tests and people.
  virtual absl::StatusOr<std::string> Render(const std::vector<ChatMessage>& messages,
                                             const ChatOptions& options) const = 0;
  // How the answer begins: inside <think>, after it, or the model decides.
  enum class Start { kInReasoning, kInContent, kModelDecides };
  virtual Start AnswerStart(const ChatOptions& options) const = 0;
  virtual ChatFormat format() const = 0;
};

}  // namespace sluice
