// Faults that can be planted in the handoff, to show that the simulation would find them. Only a
// build with SLUICE_MUTANTS defined (tests/kvtransfer) can plant one; everywhere else Planted is a
// constant false and the compiler drops what it guards.
#pragma once

namespace sluice::handoff {

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

#ifdef SLUICE_MUTANTS
// Process-wide; set before the first transfer.
inline HandoffMutant planted_mutant = HandoffMutant::kNone;
inline bool Planted(HandoffMutant mutant) { return planted_mutant == mutant; }
#else
constexpr bool Planted(HandoffMutant) { return false; }
#endif

}  // namespace sluice::handoff
