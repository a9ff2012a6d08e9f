// The faults of the handoff that its simulation must find (common/mutants.h).
#pragma once

#include "common/mutants.h"

namespace sluice::handoff {

using sluice::Planted;

enum class HandoffMutant {
  kNone,
  // Receiver.
  kIgnoreIncarnation,       // any life may take a transfer over, not only the first one bound
  kFreeBeforeReceiveEnded,  // an abort frees blocks that a receive still writes
  kFreeByTimer,             // a lease after the abort, blocks are free whatever the channel does
  kCountInsteadOfCoverage,  // offers are counted, duplicates too
  kSkipChecksum,            // whatever arrived is taken for verified
  kIgnoreReceiveError,      // a receive that failed counts as one that succeeded
  kReceiveVerifiedAgain,    // a duplicate offer is received over verified blocks
  kDeliverWithoutFinal,     // delivered as soon as covered, whatever the first token is
  kNeverEndLease,           // a reservation waits for its prefill worker for ever
  // Receiving agent.
  kIgnoreAttempt,         // a newer attempt gets the transfer of the older one
  kReserveEndedAttempt,   // an attempt that is over can be reserved again
  kAcceptDuplicateFinal,  // Final for a delivered transfer delivers it again
  kForgetCommit,          // a lost Commit is answered by a refusal
  // Sender.
  kSendDoneAsAck,         // what left the channel counts as received
  kUnpinBeforeSendEnded,  // the end of a transfer unpins blocks that a send still reads
  // Sending agent.
  kAlignFromFront,  // the receiver's prefix is skipped in tokens, but not in blocks
  // Prefix fetch, the asked side.
  kFetchAnyRange,    // what is asked for is not held against the cached prefix
  kFetchAnyGrant,    // the grant is not looked at: some reservation will do
  kServeFetchAgain,  // a repeated Fetch is served once more
};

}  // namespace sluice::handoff
