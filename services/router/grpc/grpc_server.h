// The public gRPC server of the router: sluice.v1.Generation, grpc.health.v1 and reflection. gRPC's
// threads receive and check; one thread of ours runs the streams' text work.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/router/api/api_context.h"

namespace sluice::router {

struct GrpcOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any free port

  int64_t max_receive_bytes = 64 * 1024 * 1024;
  // Streams at once; further ones are refused with RESOURCE_EXHAUSTED.
  int max_streams = 4096;
  // A stream whose client does not read is ended, and its generation cancelled, once this much
  // waits behind a write. Messages that carry the prompt back have 16 times as much for themselves.
  int64_t max_stream_buffer_bytes = 1024 * 1024;
  // So is one whose client has not let a message, or the end, through for this long.
  absl::Duration write_timeout = absl::Seconds(60);
  // Clients behind a headless service find new routers when their connection ends; streams in
  // flight finish first. Infinite: never.
  absl::Duration max_connection_age = absl::Minutes(10);
  // A connection on which nothing has come for keepalive_time is asked for a sign of life; without
  // one it is broken after keepalive_timeout, and what it asked for is cancelled: its client's host
  // or the network is gone.
  absl::Duration keepalive_time = absl::Seconds(10);
  absl::Duration keepalive_timeout = absl::Seconds(20);  // also of bytes that nobody acknowledges
  bool reflection = true;
};

class GrpcServer {
 public:
  // Cancels what runs, and joins.
  virtual ~GrpcServer() = default;

  virtual int port() const = 0;
  // Health turns NOT_SERVING, new calls are refused, running ones finish; after `timeout` what is
  // left is cut off. Any thread; once.
  virtual void Drain(absl::Duration timeout) = 0;
};

// `context` must outlive the server. One server a process: health and reflection are process-wide
// settings of gRPC 1.51.
absl::StatusOr<std::unique_ptr<GrpcServer>> StartGrpcServer(const GrpcOptions& options,
                                                            ApiContext* context);

}  // namespace sluice::router
