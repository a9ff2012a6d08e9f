#include "services/router/http/chat_messages.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "services/router/api/error_table.h"

namespace sluice::router {
namespace {

// A string, or parts of type text, joined by newlines. What the assistant refused with is text of
// its too.
absl::StatusOr<std::string> ReadContent(const JsonElement& element, const std::string& param,
                                        bool of_assistant) {
  if (const auto text = AsString(element)) return std::string(*text);
  simdjson::dom::array parts;
  if (element.get(parts) != simdjson::SUCCESS) {
    return WrongType(param, "a string or a list of text parts");
  }
  std::string content;
  bool first = true;
  for (const JsonElement part : parts) {
    simdjson::dom::object object;
    if (part.get(object) != simdjson::SUCCESS) return WrongType(param, "a list of objects");
    const JsonObjectReader reader(object, absl::StrCat(param, "[]."));
    std::string type;
    SLUICE_RETURN_IF_ERROR(reader.Read("type", &type));
    const bool refusal = of_assistant && type == "refusal";
    if (type != "text" && !refusal) {
      return MakeError(
          ErrorKind::kUnsupported,
          absl::StrCat("content parts of type '", type, "' are not served; only 'text' is"), param);
    }
    const char* const field = refusal ? "refusal" : "text";
    if (!reader.Find(field).has_value()) return WrongType(reader.Param(field), "a string");
    std::string text;
    SLUICE_RETURN_IF_ERROR(reader.Read(field, &text));
    absl::StrAppend(&content, first ? "" : "\n", text);
    first = false;
  }
  return content;
}

absl::StatusOr<ChatToolCall> ReadToolCall(const JsonElement& element, const std::string& param) {
  simdjson::dom::object object;
  if (element.get(object) != simdjson::SUCCESS) return WrongType(param, "a list of objects");
  const JsonObjectReader reader(object, absl::StrCat(param, "[]."));
  ChatToolCall call;
  SLUICE_RETURN_IF_ERROR(reader.Read("id", &call.id));
  SLUICE_RETURN_IF_ERROR(reader.Read("type", &call.type));
  const std::optional<JsonElement> function = reader.Find("function");
  simdjson::dom::object function_object;
  if (!function.has_value() || function->get(function_object) != simdjson::SUCCESS) {
    return WrongType(reader.Param("function"), "an object");
  }
  const JsonObjectReader function_reader(function_object, reader.Param("function."));
  SLUICE_RETURN_IF_ERROR(function_reader.Read("name", &call.name));
  if (call.name.empty()) return WrongType(function_reader.Param("name"), "a non-empty string");
  const std::optional<JsonElement> arguments = function_reader.Find("arguments");
  if (!arguments.has_value()) return call;
  if (const auto text = AsString(*arguments)) {
    call.arguments = std::string(*text);
  } else if (arguments->is_object()) {
    call.arguments = simdjson::minify(*arguments);
  } else {
    return WrongType(function_reader.Param("arguments"), "a string of JSON");
  }
  return call;
}

absl::StatusOr<ChatMessage> ReadMessage(const JsonObjectReader& reader) {
  ChatMessage message;
  SLUICE_RETURN_IF_ERROR(reader.Read("role", &message.role));
  if (message.role.empty()) return WrongType(reader.Param("role"), "a non-empty string");
  SLUICE_RETURN_IF_ERROR(reader.Read("reasoning_content", &message.reasoning_content));
  if (const auto tool_calls = reader.Find("tool_calls")) {
    simdjson::dom::array calls;
    if (tool_calls->get(calls) != simdjson::SUCCESS) {
      return WrongType(reader.Param("tool_calls"), "a list");
    }
    for (const JsonElement call : calls) {
      SLUICE_ASSIGN_OR_RETURN(ChatToolCall read, ReadToolCall(call, reader.Param("tool_calls")));
      message.tool_calls.push_back(std::move(read));
    }
  }
  if (const auto content = reader.Find("content")) {
    SLUICE_ASSIGN_OR_RETURN(message.content, ReadContent(*content, reader.Param("content"),
                                                         message.role == "assistant"));
  } else if (message.role != "assistant") {
    return WrongType(reader.Param("content"), "a string or a list of text parts");
  }
  return message;
}

}  // namespace

absl::StatusOr<ChatMessageList> ReadMessages(const JsonElement& element) {
  simdjson::dom::array array;
  if (element.get(array) != simdjson::SUCCESS) return WrongType("messages", "a list of objects");
  ChatMessageList result;
  for (const JsonElement child : array) {
    const std::string name = absl::StrCat("messages[", result.messages.size(), "]");
    simdjson::dom::object object;
    if (child.get(object) != simdjson::SUCCESS) return WrongType(name, "an object");
    const JsonObjectReader reader(object, absl::StrCat(name, "."));
    SLUICE_ASSIGN_OR_RETURN(ChatMessage message, ReadMessage(reader));
    result.messages.push_back(std::move(message));
    // Only the last message's says that the answer goes on from it.
    result.continue_final_message = false;
    SLUICE_RETURN_IF_ERROR(reader.Read("prefix", &result.continue_final_message));
  }
  return result;
}

}  // namespace sluice::router
