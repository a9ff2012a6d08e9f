// The `messages` list of a chat body -> ChatMessages. Text only; images, audio and files are
// refused by name. Pure; any thread.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "services/router/http/json_reader.h"
#include "tokenizer/chat_encoder.h"

namespace sluice::router {

struct ChatMessageList {
  std::vector<ChatMessage> messages;
  bool continue_final_message = false;  // DeepSeek's `prefix: true` on the last message
};

absl::StatusOr<ChatMessageList> ReadMessages(const JsonElement& element);

}  // namespace sluice::router
