// Conversations in every chat format. Input: a byte of options, then messages; each is a byte for
// the role and the name of the fields that follow, and fields that end with '\x01'.
//   - the tokens decode to the text of the model's own template;
//   - no field can make control tokens: with other bars in "<｜User｜>" the same ones remain.
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "common/check.h"
#include "common/utf8.h"
#include "tests/fuzz/byte_source.h"
#include "tokenizer/chat_encoder.h"

namespace sluice {
namespace {

const Tokenizer& TinyTokenizer() {
  static const auto tokenizer = Tokenizer::Load(SLUICE_SOURCE_DIR "/models/deepseek-tiny");
  SLUICE_CHECK(tokenizer.ok());
  return **tokenizer;
}

std::vector<ChatMessage> TakeMessages(fuzz::ByteSource* source) {
  constexpr const char* kRoles[] = {"system", "user", "assistant", "tool", "developer", ""};
  std::vector<ChatMessage> messages;
  auto field = [source] { return std::string(source->Until('\x01')); };
  while (!source->empty() && messages.size() < 64) {
    const uint8_t kind = source->Byte();
    ChatMessage message;
    message.role = kRoles[kind % 8 % std::size(kRoles)];
    if (message.role.empty()) message.role = field();
    message.content = field();
    if ((kind & 8) != 0) message.reasoning_content = field();
    for (int calls = kind >> 4 & 3; calls > 0; --calls) {
      ChatToolCall call;
      call.id = field();
      call.name = field();
      call.arguments = field();
      message.tool_calls.push_back(std::move(call));
    }
    messages.push_back(std::move(message));
  }
  return messages;
}

// The encoder's precondition; the fronts refuse other bodies. Of the fields, not of the whole
// input: a byte between them can be the head of a character.
bool AreValidUtf8(const std::vector<ChatMessage>& messages) {
  for (const ChatMessage& message : messages) {
    bool valid = IsValidUtf8(message.role) && IsValidUtf8(message.content) &&
                 IsValidUtf8(message.reasoning_content);
    for (const ChatToolCall& call : message.tool_calls) {
      valid =
          valid && IsValidUtf8(call.id) && IsValidUtf8(call.name) && IsValidUtf8(call.arguments);
    }
    if (!valid) return false;
  }
  return true;
}

void Defuse(std::string* text) { *text = absl::StrReplaceAll(*text, {{"\uff5c", "|"}}); }

std::vector<ChatMessage> Defused(std::vector<ChatMessage> messages) {
  for (ChatMessage& message : messages) {
    Defuse(&message.content);
    Defuse(&message.reasoning_content);
    for (ChatToolCall& call : message.tool_calls) {
      Defuse(&call.id);
      Defuse(&call.name);
      Defuse(&call.arguments);
    }
  }
  return messages;
}

std::vector<TokenId> SpecialTokens(const std::vector<TokenId>& ids) {
  std::vector<TokenId> special;
  for (TokenId id : ids) {
    if (TinyTokenizer().IsSpecial(id)) special.push_back(id);
  }
  return special;
}

void Fuzz(const std::vector<ChatMessage>& messages, const ChatOptions& options, ChatFormat format) {
  const auto encoder = ChatEncoder::CreateFor(TinyTokenizer(), format);
  if (!encoder.ok()) return;
  const auto ids = (*encoder)->Encode(messages, options);
  const auto text = (*encoder)->Render(messages, options);
  if (!ids.ok()) return;
  SLUICE_CHECK(text.ok());
  SLUICE_CHECK(TinyTokenizer().Decode(*ids, false) == *text);
  (*encoder)->AnswerStart(messages, options);
  const auto defused_ids = (*encoder)->Encode(Defused(messages), options);
  SLUICE_CHECK(defused_ids.ok());
  SLUICE_CHECK(SpecialTokens(*defused_ids) == SpecialTokens(*ids));
}

}  // namespace
}  // namespace sluice

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice;  // NOLINT: a target is one function
  fuzz::ByteSource source(data, size);
  ChatOptions options;
  const uint8_t flags = source.Byte();
  options.add_generation_prompt = (flags & 1) != 0;
  if ((flags & 2) != 0) options.thinking = (flags & 4) != 0;
  options.continue_final_message = (flags & 8) != 0;
  const std::vector<ChatMessage> messages = TakeMessages(&source);
  if (!AreValidUtf8(messages)) return 0;
  for (ChatFormat format :
       {ChatFormat::kV2, ChatFormat::kV3, ChatFormat::kR1, ChatFormat::kV31, ChatFormat::kTiny}) {
    Fuzz(messages, options, format);
  }
  return 0;
}
