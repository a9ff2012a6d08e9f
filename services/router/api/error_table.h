// Every way a request can fail, once, for both fronts. Errors travel as absl::Status whose payload
// names the kind and the offending parameter; the table turns a kind into what HTTP and gRPC
// clients see. docs/errors.md prints the same table, and a test compares the two. Any thread.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace sluice::router {

enum class ErrorKind {
  kInvalidRequest,
  kUnsupported,
  kContextLength,
  kModelNotFound,
  kUnknownPath,
  kMethodNotAllowed,
  kRequestTimeout,
  kBodyTooLarge,
  kUnsupportedMediaType,
  kHeadersTooLarge,
  kQueueFull,
  kNoCapacity,
  kDeadline,
  kWorkerLost,
  kInternal,
  kClientGone,
};

// Whether a client that repeats the request may expect better.
enum class RetryAdvice {
  kNever,            // x-should-retry: false
  kAfter,            // x-should-retry: true, with Retry-After and retry-after-ms
  kIfNothingWasSent  // true as long as no token had been sent
};

struct ErrorRow {
  ErrorKind kind;
  const char* name;  // as in docs/errors.md
  int http_status;
  absl::StatusCode grpc_code;
  // gRPC's code as long as no token had been sent, where that differs.
  absl::StatusCode grpc_code_before_tokens;
  const char* type;  // error.type of the JSON body
  const char* code;  // error.code
  RetryAdvice retry;
  absl::Duration default_retry_after;  // with kAfter
  const char* when;
};

absl::Span<const ErrorRow> ErrorTable();
const ErrorRow& RowOf(ErrorKind kind);

// What went wrong with one request, ready to be shown.
struct ApiError {
  ErrorKind kind = ErrorKind::kInternal;
  std::string message;
  std::string param;  // "" when no single parameter is to blame
  std::optional<absl::Duration> retry_after;
  bool tokens_sent = false;

  const ErrorRow& row() const { return RowOf(kind); }
  bool should_retry() const;
  // Set iff the row says kAfter and no token had been sent: between 1 ms and 120 s (openai-python
  // ignores more).
  std::optional<absl::Duration> RetryAfter() const;
  absl::StatusCode grpc_code() const;
};

// A status that carries `kind` and `param`.
absl::Status MakeError(ErrorKind kind, absl::string_view message, absl::string_view param = "");
inline absl::Status InvalidParameter(absl::string_view param, absl::string_view message) {
  return MakeError(ErrorKind::kInvalidRequest, message, param);
}

// Statuses without a kind (from the tokenizer, the dispatcher) map by their code.
// REQUIRES: !status.ok().
ApiError ToApiError(const absl::Status& status);

}  // namespace sluice::router
