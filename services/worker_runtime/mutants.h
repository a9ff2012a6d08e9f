// The faults of the role handlers that the cluster simulation must find (common/mutants.h).
#pragma once

#include "common/mutants.h"

namespace sluice::worker {

enum class WorkerMutant {
  kNone,
  kIgnoreLostRouter,        // what a router asked for outlives its stream
  kFreeBeforeReceiveEnded,  // a cancelled reservation's blocks are free while receives are pending
  kUnpinBeforeSendEnded,    // a cancelled prompt's blocks are free while they are sent
  kActivateForgotten,       // nobody hears that the KV of a reservation is complete
};

}  // namespace sluice::worker
