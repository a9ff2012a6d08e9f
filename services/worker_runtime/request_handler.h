// What one role does with requests: the state of every attempt on this worker, from the router's
// first message to the last report. Driven by EngineLoop; every call is on the engine thread, so a
// handler calls the engine directly and needs no locks. Implementations: PrefillHandler
// (services/prefill_worker), DecodeHandler and RunHandler (services/decode_worker), on HandlerBase.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "engine/runtime/engine.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "services/rpc/attach_client.h"
#include "services/rpc/fleet_codec.h"
#include "services/worker_runtime/router_link.h"
#include "services/worker_runtime/transfer_port.h"

namespace sluice::worker {

class WorkerMetrics;

// What a handler works with. Everything outlives it.
struct HandlerContext {
  Engine* engine = nullptr;
  RouterLink* routers = nullptr;
  TransferPort* transfers = nullptr;  // null for a worker of role both
  WorkerMetrics* metrics = nullptr;
  const Clock* clock = nullptr;
  Incarnation self;
  absl::Duration lease;           // of grants, for the router's information
  absl::Duration fetch_patience;  // of a prefix fetch; zero: prefixes are not fetched
};

// When a step began and ended, on the handler's clock.
struct StepInterval {
  absl::Time begin;
  absl::Time end;
};

// When an attempt came and until when it may stay.
struct RequestTimes {
  absl::Time arrived;
  absl::Time deadline = absl::InfiniteFuture();
  bool ending = false;  // being torn down; it waits for a transfer to let go of its blocks
};

class RequestHandler {
 public:
  virtual ~RequestHandler() = default;

  virtual void OnReserve(rpc::SessionId session, rpc::SequenceAttempt sequence) = 0;
  virtual void OnPrefill(rpc::SessionId session, rpc::PrefillOrder order) = 0;
  virtual void OnRun(rpc::SessionId session, rpc::SequenceAttempt sequence) = 0;
  virtual void OnCancel(rpc::SessionId session, const rpc::CancelOrder& order) = 0;
  // The stream is gone: everything that came over it ends, unreported.
  virtual void OnSessionLost(rpc::SessionId session) = 0;

  virtual void OnReserveAnswer(ReserveAnswer answer) = 0;
  virtual void OnTransferEvent(const TransferEvent& event) = 0;
  virtual void OnStep(const StepResult& result, const StepInterval& interval) = 0;

  // Ends what is past its deadline.
  virtual void OnTick(absl::Time now) = 0;
  virtual absl::Time NextDeadline() const = 0;

  // Nothing new is accepted from now on.
  virtual void BeginDrain() = 0;
  // The process is about to end: tells the routers at once.
  virtual void AbortAll(const absl::Status& why) = 0;
  virtual int num_requests() const = 0;
  // Of a live attempt, or of what its end left to the transfer thread. Nullopt: not known here.
  virtual std::optional<RequestTimes> TimesOf(const SequenceKey& key) const = 0;
};

}  // namespace sluice::worker
