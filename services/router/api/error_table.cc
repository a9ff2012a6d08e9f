#include "services/router/api/error_table.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"

namespace sluice::router {
namespace {

using Code = absl::StatusCode;

constexpr char kKindPayload[] = "sluice/error-kind";
constexpr char kParamPayload[] = "sluice/error-param";
constexpr absl::Duration kMaxRetryAfter = absl::Seconds(120);

// clang-format off
const ErrorRow kTable[] = {
    {ErrorKind::kInvalidRequest, "invalid_request", 400, Code::kInvalidArgument, Code::kInvalidArgument,
     "invalid_request_error", "invalid_request", RetryAdvice::kNever, {},
     "a field is missing, of the wrong type or out of range; the body is not valid JSON"},
    {ErrorKind::kUnsupported, "unsupported", 400, Code::kInvalidArgument, Code::kInvalidArgument,
     "invalid_request_error", "unsupported", RetryAdvice::kNever, {},
     "a field asks for something that is not served"},
    {ErrorKind::kContextLength, "context_length_exceeded", 400, Code::kInvalidArgument, Code::kInvalidArgument,
     "invalid_request_error", "context_length_exceeded", RetryAdvice::kNever, {},
     "prompt plus max_tokens is longer than the model's context"},
    {ErrorKind::kModelNotFound, "model_not_found", 404, Code::kNotFound, Code::kNotFound,
     "not_found_error", "model_not_found", RetryAdvice::kNever, {},
     "the model is not served here"},
    {ErrorKind::kUnknownPath, "unknown_path", 404, Code::kUnimplemented, Code::kUnimplemented,
     "not_found_error", "unknown_path", RetryAdvice::kNever, {},
     "the path (or gRPC method) does not exist"},
    {ErrorKind::kMethodNotAllowed, "method_not_allowed", 405, Code::kUnimplemented, Code::kUnimplemented,
     "invalid_request_error", "method_not_allowed", RetryAdvice::kNever, {},
     "the path exists, but not for this HTTP method; Allow names those that do"},
    {ErrorKind::kRequestTimeout, "request_timeout", 408, Code::kDeadlineExceeded, Code::kDeadlineExceeded,
     "invalid_request_error", "request_timeout", RetryAdvice::kNever, {},
     "headers or body did not arrive in time"},
    {ErrorKind::kBodyTooLarge, "body_too_large", 413, Code::kResourceExhausted, Code::kResourceExhausted,
     "invalid_request_error", "body_too_large", RetryAdvice::kNever, {},
     "the body is larger than the configured limit"},
    {ErrorKind::kUnsupportedMediaType, "unsupported_media_type", 415, Code::kInvalidArgument, Code::kInvalidArgument,
     "invalid_request_error", "unsupported_media_type", RetryAdvice::kNever, {},
     "Content-Type is not application/json"},
    {ErrorKind::kHeadersTooLarge, "headers_too_large", 431, Code::kResourceExhausted, Code::kResourceExhausted,
     "invalid_request_error", "headers_too_large", RetryAdvice::kNever, {},
     "the request's headers are larger than the configured limit"},
    {ErrorKind::kQueueFull, "queue_full", 429, Code::kResourceExhausted, Code::kResourceExhausted,
     "rate_limit_error", "queue_full", RetryAdvice::kAfter, absl::Seconds(1),
     "the admission queue or a bound on concurrent work is full"},
    {ErrorKind::kNoCapacity, "no_capacity", 503, Code::kUnavailable, Code::kUnavailable,
     "service_unavailable", "no_capacity", RetryAdvice::kAfter, absl::Seconds(2),
     "no ready worker, or the router is starting or draining"},
    {ErrorKind::kDeadline, "deadline_exceeded", 504, Code::kDeadlineExceeded, Code::kDeadlineExceeded,
     "timeout", "deadline_exceeded", RetryAdvice::kNever, {},
     "the request's deadline passed, or would have passed in the queue"},
    {ErrorKind::kWorkerLost, "worker_lost", 500, Code::kInternal, Code::kAborted,
     "server_error", "worker_lost", RetryAdvice::kIfNothingWasSent, {},
     "a worker failed and the answer could not be resumed elsewhere"},
    {ErrorKind::kInternal, "internal", 500, Code::kInternal, Code::kInternal,
     "server_error", "internal", RetryAdvice::kNever, {},
     "a defect of the router"},
    {ErrorKind::kClientGone, "client_gone", 499, Code::kCancelled, Code::kCancelled,
     "client_gone", "cancelled", RetryAdvice::kNever, {},
     "the client disconnected or cancelled; HTTP status only in metrics"},
};
// clang-format on

// Statuses from rooms that know nothing of kinds.
ErrorKind KindOfCode(absl::StatusCode code) {
  switch (code) {
    case Code::kInvalidArgument:
      return ErrorKind::kInvalidRequest;
    case Code::kOutOfRange:
      return ErrorKind::kContextLength;
    case Code::kUnimplemented:
      return ErrorKind::kUnsupported;
    case Code::kNotFound:
      return ErrorKind::kModelNotFound;
    case Code::kResourceExhausted:
      return ErrorKind::kQueueFull;
    case Code::kUnavailable:
      return ErrorKind::kNoCapacity;
    case Code::kDeadlineExceeded:
      return ErrorKind::kDeadline;
    case Code::kCancelled:
      return ErrorKind::kClientGone;
    case Code::kInternal:
    case Code::kAborted:
    case Code::kDataLoss:
      return ErrorKind::kWorkerLost;
    default:
      return ErrorKind::kInternal;
  }
}

}  // namespace

absl::Span<const ErrorRow> ErrorTable() { return kTable; }

const ErrorRow& RowOf(ErrorKind kind) {
  for (const ErrorRow& row : kTable) {
    if (row.kind == kind) return row;
  }
  std::abort();  // a kind without a row: a broken table, met by the test of the table
}

bool ApiError::should_retry() const {
  switch (row().retry) {
    case RetryAdvice::kNever:
      return false;
    case RetryAdvice::kAfter:
    case RetryAdvice::kIfNothingWasSent:
      return !tokens_sent;
  }
  return false;
}

std::optional<absl::Duration> ApiError::RetryAfter() const {
  if (row().retry != RetryAdvice::kAfter || tokens_sent) return std::nullopt;
  const absl::Duration wanted = retry_after.value_or(row().default_retry_after);
  return std::clamp(wanted, absl::Milliseconds(1), kMaxRetryAfter);
}

absl::StatusCode ApiError::grpc_code() const {
  return tokens_sent ? row().grpc_code : row().grpc_code_before_tokens;
}

absl::Status MakeError(ErrorKind kind, absl::string_view message, absl::string_view param) {
  absl::Status status(RowOf(kind).grpc_code, message);
  status.SetPayload(kKindPayload, absl::Cord(RowOf(kind).name));
  if (!param.empty()) status.SetPayload(kParamPayload, absl::Cord(param));
  return status;
}

ApiError ToApiError(const absl::Status& status) {
  ApiError error;
  error.kind = KindOfCode(status.code());
  error.message = std::string(status.message());
  if (const auto kind = status.GetPayload(kKindPayload)) {
    for (const ErrorRow& row : kTable) {
      if (*kind == row.name) error.kind = row.kind;
    }
  }
  if (const auto param = status.GetPayload(kParamPayload)) error.param = std::string(*param);
  return error;
}

}  // namespace sluice::router
