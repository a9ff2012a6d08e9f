// The OpenAI-compatible HTTP server of the router. Its sockets are watched by its own threads, each
// connection by one of them for its whole life; others may take a connection's turn to write.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/router/api/api_context.h"
#include "services/router/http/silent_client.h"

namespace sluice::router {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any free port
  int num_threads = 1;

  int max_connections = 4096;
  int64_t max_header_bytes = 16 * 1024;
  int64_t max_body_bytes = 8 * 1024 * 1024;
  // A stream whose client does not read is closed, and its generation cancelled, once this much
  // waits behind a write. Events that carry the prompt back have 16 times as much for themselves.
  int64_t max_stream_buffer_bytes = 1024 * 1024;
  // SO_SNDBUF of each connection; 0 leaves it to the kernel.
  int socket_send_buffer_bytes = 0;

  // A connection without a request is closed after this long.
  absl::Duration idle_timeout = absl::Seconds(75);
  // From a request's first byte to the end of its headers, and from there to the end of its body.
  absl::Duration header_timeout = absl::Seconds(10);
  absl::Duration body_timeout = absl::Seconds(60);
  // A client that takes no byte of an answer for this long, or not all of what was written at once
  // in ten times as long, is closed. The kernel would end the former after
  // kMaxClientSilence at the latest.
  absl::Duration write_timeout = kMaxClientSilence;

  // Value of Access-Control-Allow-Origin for browser pages; "" sends no CORS headers.
  std::string cors_allow_origin;
};

class HttpServer {
 public:
  // Closes every connection, cancels what runs, and joins.
  virtual ~HttpServer() = default;

  virtual int port() const = 0;
  // Refuses new connections, closes idle ones, lets running requests finish, and returns when none
  // is left or `timeout` has passed; what is left then is cut off. Any thread but its own; once.
  virtual void Drain(absl::Duration timeout) = 0;
};

// `context` must outlive the server. An address in use is named in the error.
absl::StatusOr<std::unique_ptr<HttpServer>> StartHttpServer(const HttpOptions& options,
                                                            ApiContext* context);

}  // namespace sluice::router
