// The whole cluster in virtual time: the real router cores (two routers over the same workers, in
// most seeds), role handlers, engines over FakeModel, schedulers and transfer agents, with a faulty
// network under the KV transfers and under the fleet's streams.
//
// Faults: workers and routers crash (loudly, or with their machine), are paused (SIGSTOP) or
// suspended (their clock stands still too) and come back; clocks jump and run at their own rate;
// nodes are slow; streams break, are cut one way and heal; KV messages are lost, doubled, delayed,
// damaged; clients leave, or ask another router when theirs is gone.
//
// Checked after every event:
//   - a request's tokens come once each, in order, and are those of an undisturbed run (FakeModel's
//     logits come from the bytes in the KV blocks, so a foreign byte gives another token);
//   - a sequence starts only over KV that is its own, position by position;
//   - no block is free, or another's, while the network may still write to it or read it;
//   - block states sum to the pool, and scheduler and block manager agree with each other;
//   - a request ends once, and an error has a cause in the history of faults;
//   - an attempt is sent to a worker to compute once, whatever is planned anew;
//   - without faults about, a request that ended, or lost its router, is gone from every worker at
//     once, whatever is left of its answer.
// When the faults have stopped: every request has ended, new ones are all answered, no worker holds
// anything for anybody, and no router counts load that is not there.
#pragma once

#include "tests/sim/seed_runner.h"

namespace sluice::testing {

SimulationProgram ClusterSimulation();

}  // namespace sluice::testing
