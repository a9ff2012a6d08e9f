// The seam between the dispatcher thread, which owns the core, and the gRPC server that the workers
// dial. In the core's terms: no protocol buffers here, so either side can be replaced in a test.
#pragma once

#include "absl/time/time.h"
#include "services/router/core/messages.h"

namespace sluice::router {

// Implemented by the dispatcher; called on gRPC's threads.
class FleetListener {
 public:
  virtual ~FleetListener() = default;
  // Takes the event of a session; never blocks. The session counts it as unhandled until
  // FleetPort::Handled, and stops reading when it has too many of those: this bounds the mailbox.
  virtual void OnWorkerEvent(SessionId session, Event event) = 0;
};

// Implemented by the fleet server; called on the dispatcher thread. None of these blocks.
class FleetPort {
 public:
  virtual ~FleetPort() = default;
  // REQUIRES: an action that goes to a worker (Send..., CloseSession). Unknown sessions are
  // ignored: their end is on its way as an event.
  virtual void Send(Action action) = 0;
  // One event of the session was handled.
  virtual void Handled(SessionId session) = 0;
  // Called several times per heartbeat interval: sends heartbeats and cuts off workers that do not
  // read or do not register.
  virtual void Tick(absl::Time now) = 0;
};

}  // namespace sluice::router
