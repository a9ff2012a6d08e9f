// One Attach stream: reads and decodes a worker's messages, writes the router's. Lives from the
// call's start until gRPC's OnDone. Thread-safe: gRPC's threads and the dispatcher thread both
// enter.
//
// Bounds: `read_window` messages wait for the dispatcher, then reading stops (and gRPC's flow
// control slows the worker); `max_queued_*` wait to be written, then the worker is cut off, as it
// is when one write takes longer than `write_timeout`. An order above `max_message_bytes` fails its
// attempt alone: the worker could not receive it, which is nobody's fault but the request's.
#pragma once

#include <google/protobuf/arena.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/router/fleet/fleet_port.h"
#include "services/rpc/grpc_options.h"
#include "sluice/v1/fleet.pb.h"

namespace sluice::router {

struct FleetSessionOptions {
  int read_window = 64;
  size_t max_queued_messages = 4096;
  size_t max_queued_bytes = 64 << 20;
  size_t max_message_bytes = rpc::kMaxMessageBytes;
  absl::Duration heartbeat_interval = absl::Milliseconds(200);
  absl::Duration write_timeout = absl::Seconds(3);
  absl::Duration register_timeout = absl::Seconds(5);
};

class FleetSession final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::RouterMessage> {
 public:
  // `on_done` is the last thing the session calls, on a gRPC thread.
  FleetSession(SessionId id, const FleetSessionOptions& options,
               grpc::CallbackServerContext* context, FleetListener* listener,
               std::function<void(SessionId)> on_done);

  // Starts reading. `self` keeps the session alive until gRPC is done with it.
  void Begin(std::shared_ptr<FleetSession> self);

  void Send(v1::RouterMessage message);
  // Sends what is queued and closes with this status.
  void Close(grpc::Status status);
  // Closes now; the listener hears WorkerLeft with `reason`.
  void Abort(const std::string& reason);
  void Handled();
  void Tick(absl::Time now);

  SessionId id() const { return id_; }

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // Decodes `incoming_`, hands it on and empties it. An error closes the session.
  absl::Status HandleIncoming();
  void ReportLeft(const std::string& reason);
  // Answers an order in the worker's place.
  void RefuseOrder(const v1::RouterMessage& message);
  void EnqueueLocked(v1::RouterMessage message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StartNextWriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void BeginCloseLocked(grpc::Status status, bool drop_queue) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const SessionId id_;
  const FleetSessionOptions& options_;
  grpc::CallbackServerContext* const context_;
  FleetListener* const listener_;
  const std::function<void(SessionId)> on_done_;
  const absl::Time opened_at_;

  // Owned by gRPC between a Start... and its reaction.
  std::shared_ptr<FleetSession> self_;
  google::protobuf::Arena arena_;  // of incoming_: a step has a message for each sequence
  v1::WorkerMessage* incoming_ = google::protobuf::Arena::CreateMessage<v1::WorkerMessage>(&arena_);
  v1::RouterMessage outgoing_;

  absl::Mutex mu_;
  std::deque<v1::RouterMessage> queue_ ABSL_GUARDED_BY(mu_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int unhandled_ ABSL_GUARDED_BY(mu_) = 0;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time write_started_ ABSL_GUARDED_BY(mu_);
  absl::Time last_write_ ABSL_GUARDED_BY(mu_);
  bool registered_ ABSL_GUARDED_BY(mu_) = false;
  bool welcomed_ ABSL_GUARDED_BY(mu_) = false;
  bool left_reported_ ABSL_GUARDED_BY(mu_) = false;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;   // no more messages are taken
  bool finished_ ABSL_GUARDED_BY(mu_) = false;  // Finish was called: no operation may start
  grpc::Status final_status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sluice::router
