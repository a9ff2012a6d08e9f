// One HTTP request and the way to answer it. The connection implements it; routes and answers use
// it, so that they see neither sockets nor Beast. All methods run in the connection's turns (see
// http_connection.h). Exactly one answer: Respond, or StartStream .. EndStream.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/router/api/error_table.h"
#include "services/router/api/generation_call.h"

namespace sluice::router {

struct HttpRequest {
  std::string method;        // "GET"
  std::string path;          // still percent-encoded, without query
  std::string content_type;  // as sent, or ""
  bool has_origin = false;   // a browser's page sent it
  std::string request_id;    // the client's x-request-id, or ours
  std::string body;
  absl::Time received_at;  // MonotonicNow() scale: when its headers were complete
};

struct HttpHeader {
  std::string name;
  std::string value;
};

// Work behind an answer that is not there yet. The exchange owns it until the answer is complete.
class PendingAnswer {
 public:
  virtual ~PendingAnswer() = default;
  // The client has gone or reads too slowly; nothing can be sent any more. At most once.
  virtual void OnClientGone() = 0;
};

class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  virtual HttpRequest& request() = 0;
  // Label of the http_requests_total metric; "other" until set.
  virtual void SetRoute(absl::string_view route) = 0;

  virtual void Respond(int status, absl::string_view content_type, std::string body,
                       std::vector<HttpHeader> headers) = 0;

  // Server-sent events: one event a write.
  virtual void StartStream() = 0;
  virtual void SendEvent(absl::string_view data) = 0;
  // The event with which a choice begins. It may carry the client's own prompt back; up to 16 times
  // max_stream_buffer_bytes of that do not count against the client.
  virtual void SendOpeningEvent(absl::string_view data) = 0;
  // With `close`, the connection ends too: the stream was cut short.
  virtual void EndStream(bool close) = 0;

  virtual void SetPending(std::unique_ptr<PendingAnswer> pending) = 0;
  // Runs `work` (on the prepare pool, or here if `input_bytes` is small), then what it returned in
  // a turn of the connection; neither if the client has gone by then. A full pool answers 429.
  virtual void Prepare(int64_t input_bytes, std::function<std::function<void()>()> work) = 0;
  // For a call behind the answer; expires with the connection.
  virtual std::weak_ptr<CallExecutor> Executor() = 0;
};

inline constexpr char kJsonContentType[] = "application/json";

// x-should-retry, Retry-After and retry-after-ms as the error table says.
std::vector<HttpHeader> RetryHeaders(const ApiError& error);
// Status, body and retry headers as the error table says.
void RespondError(HttpExchange* exchange, const ApiError& error,
                  std::vector<HttpHeader> headers = {});
inline void RespondError(HttpExchange* exchange, const absl::Status& status) {
  RespondError(exchange, ToApiError(status));
}

}  // namespace sluice::router
