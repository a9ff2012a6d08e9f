// Plants one fault at a time in the router's recovery, the scheduler's accounting and the workers'
// handlers (mutants.h beside each) and runs the cluster simulation: it must find each of them.
#include "engine/scheduler/mutants.h"
#include "services/router/core/mutants.h"
#include "services/worker_runtime/mutants.h"
#include "tests/sim/cluster_world.h"
#include "tests/sim/mutant_hunt.h"

namespace sluice::testing {
namespace {

using router::RouterMutant;
using worker::WorkerMutant;

template <typename Mutant>
NamedMutant Only(const char* name, Mutant mutant) {
  return {name, [mutant] {
            planted_mutant<RouterMutant> = RouterMutant::kNone;
            planted_mutant<SchedulerMutant> = SchedulerMutant::kNone;
            planted_mutant<WorkerMutant> = WorkerMutant::kNone;
            planted_mutant<Mutant> = mutant;
          }};
}
#define ONLY(mutant) Only(#mutant, mutant)

int Main() {
  const std::vector<NamedMutant> mutants = {
      ONLY(RouterMutant::kKeepAttempt),          ONLY(RouterMutant::kResumeWithoutLastToken),
      ONLY(RouterMutant::kIgnoreTokenIndex),     ONLY(RouterMutant::kFinishWithGap),
      ONLY(RouterMutant::kForgetCancel),         ONLY(RouterMutant::kKeepAssigned),
      ONLY(RouterMutant::kIgnoreLostWorker),     ONLY(SchedulerMutant::kTrustUnverified),
      ONLY(SchedulerMutant::kReuseWholePrompt),  ONLY(SchedulerMutant::kKeepPromise),
      ONLY(SchedulerMutant::kReserveForEver),    ONLY(SchedulerMutant::kPreemptInSilence),
      ONLY(WorkerMutant::kIgnoreLostRouter),     ONLY(WorkerMutant::kFreeBeforeReceiveEnded),
      ONLY(WorkerMutant::kUnpinBeforeSendEnded), ONLY(WorkerMutant::kActivateForgotten),
  };
  return HuntMutants(ClusterSimulation(), mutants, /*num_seeds=*/1000, /*num_minimised=*/2);
}

}  // namespace
}  // namespace sluice::testing

int main() { return sluice::testing::Main(); }
