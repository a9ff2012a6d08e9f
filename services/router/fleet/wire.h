// The fleet protocol's protocol buffers to and from the core's events and actions. Everything from
// the wire is checked: INVALID_ARGUMENT names the field. Pure functions, any thread.
#pragma once

#include "absl/status/statusor.h"
#include "services/router/core/messages.h"

namespace sluice::v1 {
class RouterMessage;
class WorkerMessage;
}  // namespace sluice::v1

namespace sluice::router {

absl::StatusOr<Event> DecodeWorkerMessage(SessionId session, const v1::WorkerMessage& message);

struct RouterIdentity {
  std::string router_id;
  Incarnation incarnation;
};
// REQUIRES: one of the Send actions.
void EncodeAction(const RouterIdentity& identity, Action action, v1::RouterMessage* message);
// The worker an action goes to; a zero id for actions that go to no worker.
SessionId Destination(const Action& action);

}  // namespace sluice::router
