// The faults of the block accounting that the cluster simulation must find (common/mutants.h).
#pragma once

#include "common/mutants.h"

namespace sluice {

enum class SchedulerMutant {
  kNone,
  kTrustUnverified,   // an abandoned reservation's blocks become cached prefix unverified
  kReuseWholePrompt,  // the last token of a prompt is taken from the cache too
  kKeepPromise,       // blocks promised to a sequence stay promised when it leaves
  kReserveForEver,    // an abandoned reservation still counts against max_num_seqs
  kPreemptInSilence,  // nobody hears that a reservation was preempted
};

}  // namespace sluice
