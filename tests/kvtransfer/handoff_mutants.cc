// Plants one fault at a time in the handoff (kvtransfer/handoff/mutants.h) and runs the simulation:
// it must find each of them within its seeds. A mutant that survives shows what the simulation does
// not check.
#include "kvtransfer/handoff/mutants.h"
#include "tests/kvtransfer/handoff_world.h"
#include "tests/sim/mutant_hunt.h"

int main() {
  using sluice::handoff::HandoffMutant;
  std::vector<sluice::testing::NamedMutant> mutants;
#define ADD(mutant)  \
  mutants.push_back( \
      {#mutant, [] { sluice::planted_mutant<HandoffMutant> = HandoffMutant::mutant; }})
  ADD(kIgnoreIncarnation);
  ADD(kFreeBeforeReceiveEnded);
  ADD(kFreeByTimer);
  ADD(kCountInsteadOfCoverage);
  ADD(kSkipChecksum);
  ADD(kIgnoreReceiveError);
  ADD(kReceiveVerifiedAgain);
  ADD(kDeliverWithoutFinal);
  ADD(kNeverEndLease);
  ADD(kIgnoreAttempt);
  ADD(kReserveEndedAttempt);
  ADD(kAcceptDuplicateFinal);
  ADD(kForgetCommit);
  ADD(kSendDoneAsAck);
  ADD(kUnpinBeforeSendEnded);
  ADD(kAlignFromFront);
  ADD(kFetchAnyRange);
  ADD(kFetchAnyGrant);
  ADD(kServeFetchAgain);
#undef ADD
  return sluice::testing::HuntMutants(sluice::testing::HandoffSimulation(), mutants,
                                      /*num_seeds=*/1000, /*num_minimised=*/3);
}
