#include "tokenizer/chat_format.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace sluice {
namespace {

// The bars are U+FF5C and the low lines U+2581.
constexpr absl::string_view kBos = "<｜begin▁of▁sentence｜>";
constexpr absl::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr absl::string_view kUser = "<｜User｜>";
constexpr absl::string_view kAssistant = "<｜Assistant｜>";
constexpr absl::string_view kThink = "<think>";
constexpr absl::string_view kEndThink = "</think>";
constexpr absl::string_view kCallsBegin = "<｜tool▁calls▁begin｜>";
constexpr absl::string_view kCallsEnd = "<｜tool▁calls▁end｜>";
constexpr absl::string_view kCallBegin = "<｜tool▁call▁begin｜>";
constexpr absl::string_view kCallEnd = "<｜tool▁call▁end｜>";
constexpr absl::string_view kOutputsBegin = "<｜tool▁outputs▁begin｜>";
constexpr absl::string_view kOutputsEnd = "<｜tool▁outputs▁end｜>";
constexpr absl::string_view kOutputBegin = "<｜tool▁output▁begin｜>";
constexpr absl::string_view kOutputEnd = "<｜tool▁output▁end｜>";
constexpr absl::string_view kSep = "<｜tool▁sep｜>";

using Messages = absl::Span<const ChatMessage>;

bool IsSystem(const ChatMessage& message) {
  return message.role == "system" || message.role == "developer";
}

// All system messages, from wherever they stand, go to the front, with an empty line between them.
void HoistSystem(Messages messages, ChatText* out) {
  bool first = true;
  for (const ChatMessage& message : messages) {
    if (!IsSystem(message)) continue;
    if (!first) out->Text("\n\n");
    out->Text(message.content);
    first = false;
  }
}

absl::string_view AfterLastEndThink(absl::string_view content) {
  const size_t tag = content.rfind(kEndThink);
  return tag == absl::string_view::npos ? content : content.substr(tag + kEndThink.size());
}

absl::string_view AfterFirstEndThink(absl::string_view content) {
  const size_t tag = content.find(kEndThink);
  return tag == absl::string_view::npos ? content : content.substr(tag + kEndThink.size());
}

// function<sep>NAME and the arguments as a fenced JSON block: V3 and R1.
void FencedCall(const ChatToolCall& call, ChatText* out) {
  out->Control(kCallBegin);
  out->Text(call.type);
  out->Control(kSep);
  out->Text(call.name);
  out->Text("\n```json\n");
  out->Text(call.arguments);
  out->Text("\n```");
  out->Control(kCallEnd);
}

void RenderV2(Messages messages, const ChatOptions& options, ChatText* out) {
  out->Control(kBos);
  for (const ChatMessage& message : messages) {
    if (message.role == "assistant") {
      out->Text("Assistant: ");
      out->Text(message.content);
      out->Control(kEos);
      continue;
    }
    if (message.role == "user") out->Text("User: ");
    out->Text(message.content);
    out->Text("\n\n");
  }
  if (options.add_generation_prompt) out->Text("Assistant:");
}

// V3's template and R1's, which differ in `cut_reasoning` and the generation prompt. The model
// learned on what this template makes, so its peculiarities are kept: the marks before the first
// call and the first result are written once in a conversation, and a single call is not closed.
// Beyond the template, an assistant's text beside its tool calls is kept: the template forgets the
// calls.
void RenderV3(Messages messages, const ChatOptions& options, bool is_r1, ChatText* out) {
  out->Control(kBos);
  HoistSystem(messages, out);
  bool had_call = false;
  bool had_output = false;
  bool after_output = false;
  for (const ChatMessage& message : messages) {
    const absl::string_view content = is_r1 && message.role == "assistant"
                                          ? AfterLastEndThink(message.content)
                                          : absl::string_view(message.content);
    if (message.role == "user") {
      after_output = false;
      out->Control(kUser);
      out->Text(content);
    } else if (message.role == "assistant" && !message.tool_calls.empty()) {
      after_output = false;
      if (had_call) out->Text(content);
      for (const ChatToolCall& call : message.tool_calls) {
        if (!had_call) {
          out->Control(kAssistant);
          out->Text(content);
          out->Control(kCallsBegin);
          FencedCall(call, out);
          had_call = true;
        } else {
          out->Text("\n");
          FencedCall(call, out);
          out->Control(kCallsEnd);
          out->Control(kEos);
        }
      }
    } else if (message.role == "assistant") {
      out->Control(after_output ? kOutputsEnd : kAssistant);
      after_output = false;
      out->Text(content);
      out->Control(kEos);
    } else if (message.role == "tool") {
      after_output = true;
      if (had_output) {
        out->Text("\n");
      } else {
        out->Control(kOutputsBegin);
      }
      had_output = true;
      out->Control(kOutputBegin);
      out->Text(content);
      out->Control(kOutputEnd);
    }
  }
  if (after_output) out->Control(kOutputsEnd);
  if (options.add_generation_prompt && !after_output) {
    out->Control(kAssistant);
    if (is_r1) {
      out->Control(kThink);
      out->Text("\n");
    }
  }
}

void RenderV31(Messages messages, const ChatOptions& options, ChatText* out) {
  out->Control(kBos);
  HoistSystem(messages, out);
  // The assistant's mark belongs to the first turn after a user's; what follows tool results has
  // none.
  bool after_user = false;
  for (const ChatMessage& message : messages) {
    if (message.role == "user") {
      after_user = true;
      out->Control(kUser);
      out->Text(message.content);
    } else if (message.role == "assistant") {
      if (after_user) {
        out->Control(kAssistant);
        out->Control(kEndThink);
      }
      after_user = false;
      out->Text(AfterFirstEndThink(message.content));
      if (!message.tool_calls.empty()) {
        out->Control(kCallsBegin);
        for (const ChatToolCall& call : message.tool_calls) {
          out->Control(kCallBegin);
          out->Text(call.name);
          out->Control(kSep);
          out->Text(call.arguments);
          out->Control(kCallEnd);
        }
        out->Control(kCallsEnd);
      }
      out->Control(kEos);
    } else if (message.role == "tool") {
      after_user = false;
      out->Control(kOutputBegin);
      out->Text(message.content);
      out->Control(kOutputEnd);
    }
  }
  if (options.add_generation_prompt && after_user) {
    out->Control(kAssistant);
    out->Control(options.thinking.value_or(false) ? kThink : kEndThink);
  }
}

// R1's layout with tool rounds that open and close properly; the answer begins right after the
// mark.
void RenderTiny(Messages messages, const ChatOptions& options, ChatText* out) {
  out->Control(kBos);
  HoistSystem(messages, out);
  bool first_output = true;
  bool after_output = false;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == "user") {
      after_output = false;
      out->Control(kUser);
      out->Text(message.content);
    } else if (message.role == "assistant") {
      if (!after_output) out->Control(kAssistant);
      after_output = false;
      out->Text(AfterLastEndThink(message.content));
      if (!message.tool_calls.empty()) {
        out->Control(kCallsBegin);
        for (size_t call = 0; call < message.tool_calls.size(); ++call) {
          if (call > 0) out->Text("\n");
          FencedCall(message.tool_calls[call], out);
        }
        out->Control(kCallsEnd);
        first_output = true;
      }
      out->Control(kEos);
    } else if (message.role == "tool") {
      after_output = true;
      if (first_output) {
        out->Control(kOutputsBegin);
      } else {
        out->Text("\n");
      }
      first_output = false;
      out->Control(kOutputBegin);
      out->Text(message.content);
      out->Control(kOutputEnd);
      if (i + 1 == messages.size() || messages[i + 1].role != "tool") out->Control(kOutputsEnd);
    }
  }
  if (options.add_generation_prompt && !after_output) out->Control(kAssistant);
}

absl::Status CheckMessages(ChatFormat format, Messages messages) {
  if (messages.empty()) return absl::InvalidArgumentError("messages: a conversation is not empty");
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const auto invalid = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "]", what));
    };
    const bool is_assistant = message.role == "assistant";
    const bool is_tool = message.role == "tool";
    if (!is_assistant && !is_tool && message.role != "user" && !IsSystem(message)) {
      return invalid(absl::StrCat(".role: '", message.role,
                                  "' is none of system, developer, user, assistant, tool"));
    }
    if (!is_assistant && !message.tool_calls.empty()) {
      return invalid(".tool_calls: only an assistant's message has them");
    }
    if (format == ChatFormat::kV2 && (is_tool || !message.tool_calls.empty())) {
      return invalid(": the chat format of DeepSeek-V2 has no tools");
    }
  }
  return absl::OkStatus();
}

}  // namespace

void ChatText::Text(absl::string_view text) {
  if (text.empty()) return;
  if (segments_.empty() || segments_.back().is_control) segments_.push_back({false, ""});
  segments_.back().text.append(text.data(), text.size());
}

std::string ChatText::ToString() const {
  std::string text;
  for (const Segment& segment : segments_) text += segment.text;
  return text;
}

absl::StatusOr<ChatText> RenderChat(ChatFormat format, const std::vector<ChatMessage>& all,
                                    const ChatOptions& requested) {
  SLUICE_RETURN_IF_ERROR(CheckMessages(format, all));
  Messages messages = all;
  ChatOptions options = requested;
  if (options.continue_final_message) {
    if (all.back().role != "assistant" || !all.back().tool_calls.empty()) {
      return absl::InvalidArgumentError(
          "messages: only a last assistant message without tool calls can be continued");
    }
    messages.remove_suffix(1);
    options.add_generation_prompt = true;
  }
  ChatText out;
  switch (format) {
    case ChatFormat::kV2:
      RenderV2(messages, options, &out);
      break;
    case ChatFormat::kV3:
      RenderV3(messages, options, /*is_r1=*/false, &out);
      break;
    case ChatFormat::kR1:
      RenderV3(messages, options, /*is_r1=*/true, &out);
      break;
    case ChatFormat::kV31:
      RenderV31(messages, options, &out);
      break;
    case ChatFormat::kTiny:
      RenderTiny(messages, options, &out);
      break;
  }
  if (options.continue_final_message && !all.back().content.empty()) {
    // V2 writes finished answers behind a space, which the model else begins its answer with.
    if (format == ChatFormat::kV2) out.Text(" ");
    out.Text(all.back().content);
  }
  return out;
}

absl::string_view LastRoleInPlace(Messages messages) {
  const auto last = std::find_if_not(messages.rbegin(), messages.rend(),
                                     [](const ChatMessage& message) { return IsSystem(message); });
  return last == messages.rend() ? absl::string_view() : absl::string_view(last->role);
}

std::vector<absl::string_view> RequiredControlTokens(ChatFormat format) {
  switch (format) {
    case ChatFormat::kV2:
      return {kBos, kEos};
    case ChatFormat::kV3:
    case ChatFormat::kTiny:
      return {kBos, kEos, kUser, kAssistant};
    case ChatFormat::kR1:
    case ChatFormat::kV31:
      return {kBos, kEos, kUser, kAssistant, kThink, kEndThink};
  }
  return {};
}

}  // namespace sluice
