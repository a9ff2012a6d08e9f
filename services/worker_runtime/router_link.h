// What a role says to the router a request came from. Implemented by RouterSessions; called on the
// engine thread; never blocks. Messages to a session that has ended are dropped.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/runtime/engine.h"
#include "services/rpc/attach_client.h"
#include "services/rpc/fleet_codec.h"

namespace sluice::worker {

class RouterLink {
 public:
  virtual ~RouterLink() = default;
  virtual void SendGrant(rpc::SessionId session, const rpc::GrantTerms& grant) = 0;
  virtual void SendBusy(rpc::SessionId session, const rpc::BusyAnswer& busy) = 0;
  // All of one step's tokens for this router, in one message.
  virtual void SendTokens(rpc::SessionId session,
                          const std::vector<rpc::OutputTokenEvent>& tokens) = 0;
  virtual void SendKvReady(rpc::SessionId session, const rpc::KvReadyEvent& event) = 0;
  virtual void SendEnded(rpc::SessionId session, const rpc::RequestEndedEvent& event) = 0;
  virtual void SendPreempted(rpc::SessionId session, const SequenceKey& key) = 0;
};

}  // namespace sluice::worker
