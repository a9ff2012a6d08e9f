// The worker's end of one Attach stream: dials one router, registers, sends what it is given,
// reports load every heartbeat interval, notices a dead router, and dials again for as long as it
// lives (exponential backoff with jitter). Owned by the worker's RouterSessions; Send is
// thread-safe and never blocks.
//
// Each established or attempted stream is a session with a process-unique id. A session that ended
// never comes back: what belonged to it is over, and the next stream is another session.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace sluice::v1 {
class RouterMessage;
class WorkerMessage;
}  // namespace sluice::v1

namespace sluice::rpc {

using SessionId = StrongId<struct SessionIdTag, uint64_t>;

struct AttachOptions {
  std::string router_address;  // host:port
  absl::Duration heartbeat_interval = absl::Milliseconds(200);
  // Nothing heard for this long: the router is dead. Its heartbeats come every 200 ms.
  absl::Duration router_timeout = absl::Milliseconds(1500);
  absl::Duration welcome_timeout = absl::Seconds(3);  // dial to Welcome
  absl::Duration backoff_min = absl::Milliseconds(100);
  absl::Duration backoff_max = absl::Seconds(3);
  absl::Duration flush_timeout = absl::Milliseconds(500);  // what Stop gives the last messages
  // A router that reads more slowly than this allows is cut off.
  size_t max_queued_messages = 4096;
  size_t max_queued_bytes = 64 << 20;
};

// Calls for one session come in the order OnConnect, OnWelcome, OnMessage / OnHeartbeat...,
// OnDisconnect. They must return quickly and must not call AttachClient::Stop.
class AttachHandler {
 public:
  virtual ~AttachHandler() = default;
  // The Register message of a new stream.
  virtual v1::WorkerMessage OnConnect(SessionId session) = 0;
  virtual void OnWelcome(SessionId session, const std::string& router_id) = 0;
  // On a gRPC thread, in order of arrival. Welcome and Heartbeat are not passed on.
  virtual void OnMessage(SessionId session, const v1::RouterMessage& message) = 0;
  // The LoadReport to send now.
  virtual v1::WorkerMessage OnHeartbeat(SessionId session) = 0;
  // Last call of a session, also of one that was never welcomed.
  virtual void OnDisconnect(SessionId session, const absl::Status& why) = 0;
};

class AttachClient {
 public:
  // Starts dialling at once, on a thread of its own. `handler` must outlive the client.
  static std::unique_ptr<AttachClient> Start(AttachOptions options, AttachHandler* handler);

  virtual ~AttachClient() = default;  // stops

  // Queues a message. A TokenBatch joins one that still waits. False: the session has ended, or
  // just ended because its queue was full; the message is dropped, OnDisconnect comes.
  virtual bool Send(SessionId session, v1::WorkerMessage message) = 0;
  // Reports load now instead of at the next interval.
  virtual void HeartbeatNow() = 0;
  // Ends the current session as if the router had gone.
  virtual void Break(SessionId session, absl::Status why) = 0;
  // A session is established and welcomed.
  virtual bool attached() const = 0;
  // Sends what is queued (at most flush_timeout), closes and joins. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace sluice::rpc
