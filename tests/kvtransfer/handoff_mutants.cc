// Plants one fault at a time in the handoff (kvtransfer/handoff/mutants.h) and runs the simulation:
// it must find each of them within its seeds. A mutant that survives shows what the simulation does
// not check.
//   handoff_mutants [--seeds N]
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "kvtransfer/handoff/mutants.h"
#include "tests/kvtransfer/handoff_world.h"

namespace {

using sluice::handoff::HandoffMutant;

struct Named {
  HandoffMutant mutant;
  const char* name;
};
#define NAMED(mutant) \
  { HandoffMutant::mutant, #mutant }
constexpr Named kMutants[] = {
    NAMED(kIgnoreIncarnation),      NAMED(kFreeBeforeReceiveEnded), NAMED(kFreeByTimer),
    NAMED(kCountInsteadOfCoverage), NAMED(kSkipChecksum),           NAMED(kIgnoreReceiveError),
    NAMED(kReceiveVerifiedAgain),   NAMED(kDeliverWithoutFinal),    NAMED(kNeverEndLease),
    NAMED(kIgnoreAttempt),          NAMED(kReserveEndedAttempt),    NAMED(kAcceptDuplicateFinal),
    NAMED(kForgetCommit),           NAMED(kSendDoneAsAck),          NAMED(kUnpinBeforeSendEnded),
    NAMED(kAlignFromFront),         NAMED(kFetchAnyRange),          NAMED(kFetchAnyGrant),
    NAMED(kServeFetchAgain),
};
#undef NAMED

constexpr unsigned kMaxSeconds = 200;  // per mutant; far more than its seeds need

// Exit code of a process that runs the seeds with the fault planted; -1 if it was killed.
int RunChild(HandoffMutant mutant, uint64_t num_seeds) {
  std::fflush(stdout);
  pid_t child = fork();
  if (child < 0) {
    std::perror("fork");
    std::exit(2);
  }
  if (child == 0) {
    alarm(kMaxSeconds);
    sluice::handoff::planted_mutant = mutant;
    for (uint64_t seed = 1; seed <= num_seeds; ++seed) sluice::RunHandoffSeed(seed, false);
    std::exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t num_seeds = 1000;
  if (argc == 3 && std::string(argv[1]) == "--seeds") {
    num_seeds = std::strtoull(argv[2], nullptr, 10);
  }
  int num_survivors = 0;
  for (const Named& named : kMutants) {
    std::printf("--- %s\n", named.name);
    int code = RunChild(named.mutant, num_seeds);
    if (code == 1) continue;
    ++num_survivors;
    std::printf("%s %s\n", named.name,
                code == 0
                    ? "SURVIVED: the simulation does not notice this fault"
                    : "ended without a verdict: the simulation should have said what is wrong");
  }
  std::printf("%d faults survived\n", num_survivors);
  return num_survivors == 0 ? 0 : 1;
}
