// The gRPC server that workers dial (fleet.proto). One FleetSession per stream; everything they say
// goes to the listener, what the dispatcher wants to say comes through FleetPort. Faces our own
// machines only: its own port, never the public one.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "services/router/fleet/fleet_port.h"
#include "services/rpc/grpc_options.h"

namespace sluice::router {

struct FleetServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any free port
  std::string router_id;
  int max_sessions = 2048;

  // Of each session; see fleet_session.h.
  int read_window = 64;
  size_t max_queued_messages = 4096;
  size_t max_queued_bytes = 64 << 20;
  size_t max_message_bytes = rpc::kMaxMessageBytes;
  absl::Duration heartbeat_interval = absl::Milliseconds(200);
  absl::Duration write_timeout = absl::Seconds(3);
  absl::Duration register_timeout = absl::Seconds(5);
};

class FleetServer : public FleetPort {
 public:
  // `listener` must outlive the server. An address in use is named in the error.
  static absl::StatusOr<std::unique_ptr<FleetServer>> Start(const FleetServerOptions& options,
                                                            FleetListener* listener);
  ~FleetServer() override = default;  // shuts down

  virtual int port() const = 0;
  // Ends every stream and stops listening; no listener call after it. Idempotent; not on a gRPC
  // thread.
  virtual void Shutdown() = 0;
};

}  // namespace sluice::router
