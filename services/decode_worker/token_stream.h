// What decode and both roles share in reporting a running sequence. Pure functions.
#pragma once

#include "engine/runtime/engine.h"
#include "services/worker_runtime/handler_base.h"

namespace sluice::worker {

// The ending the engine reports for a sequence. REQUIRES: not preempted (that has its own message).
inline Ending EndingOf(const SequenceEnded& ended) {
  switch (ended.reason) {
    case EndReason::kStop:
      return {rpc::RequestEndReason::kStop, {}, ""};
    case EndReason::kLength:
      return {rpc::RequestEndReason::kLength, {}, ""};
    case EndReason::kPreempted:
    case EndReason::kFailed:
      break;
  }
  return Ending::Failed(
      ended.status.ok() ? absl::InternalError("the engine gave no reason") : ended.status,
      "decode");
}

}  // namespace sluice::worker
