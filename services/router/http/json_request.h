// OpenAI-style JSON bodies -> request structs. Strict about syntax (UTF-8, nesting, duplicate keys)
// and types, lenient about keys: unknown ones are ignored, null counts as absent. Ranges are
// checked later, by api/plan.h. Pure; any thread.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/router/api/request.h"

namespace sluice::router {

struct StreamOptions {
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage_stats = false;
  bool include_timings = false;  // with the usage, streamed or not
};

struct CompletionBody {
  CompletionRequest request;
  StreamOptions stream;
};
struct ChatBody {
  ChatRequest request;
  StreamOptions stream;
};

// INVALID_ARGUMENT with the parameter's name; see error_table.h.
absl::StatusOr<CompletionBody> ParseCompletionBody(absl::string_view body);
absl::StatusOr<ChatBody> ParseChatBody(absl::string_view body);
absl::StatusOr<TokenizeRequest> ParseTokenizeBody(absl::string_view body);
absl::StatusOr<DetokenizeRequest> ParseDetokenizeBody(absl::string_view body);

}  // namespace sluice::router
