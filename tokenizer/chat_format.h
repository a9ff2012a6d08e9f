// The chat formats themselves: messages -> control tokens and text, as the models' own templates do
// it. Pure functions, any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tokenizer/chat_encoder.h"

namespace sluice {

// A rendered conversation: control tokens by their text, and ordinary text between them.
class ChatText {
 public:
  struct Segment {
    bool is_control = false;
    std::string text;
  };

  void Control(absl::string_view token) { segments_.push_back({true, std::string(token)}); }
  // Neighbouring texts become one segment: they are tokenized together.
  void Text(absl::string_view text);

  const std::vector<Segment>& segments() const { return segments_; }
  std::string ToString() const;

 private:
  std::vector<Segment> segments_;
};

// INVALID_ARGUMENT as ChatEncoder::Encode.
absl::StatusOr<ChatText> RenderChat(ChatFormat format, const std::vector<ChatMessage>& messages,
                                    const ChatOptions& options);

// The role of the last message that stays where it stands; "" without one. (System messages move to
// the front, so that the prompt ends with another one.)
absl::string_view LastRoleInPlace(absl::Span<const ChatMessage> messages);

// Control tokens without which no conversation of this format can be rendered.
std::vector<absl::string_view> RequiredControlTokens(ChatFormat format);

}  // namespace sluice
