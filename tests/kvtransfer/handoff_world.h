// Real transfer agents of two prefill and two decode workers over a faulty network, on virtual
// time. Around the agents are fake engines with small LIFO block pools, which give the worst reuse
// distance: what one request frees the next one takes at once. A router makes attempts until each
// request is delivered; now and then a stale message of it starts the same attempt on a second
// prefill worker, or reserves an attempt that is over. Before it computes, a prefill worker often
// fetches the prefix that the decode worker has cached from an earlier attempt.
//
// Faults: messages are lost, doubled, delayed, reordered, damaged; receives fail or hang; links are
// cut one way; processes crash, are paused (their clock goes on) or suspended (it does not); clocks
// jump and run at their own rate.
//
// Checked all the time:
//   - a delivered sequence holds exactly the bytes that one life of one worker computed for
//     (request, attempt, position), and so does what an aborted transfer reports as verified;
//   - delivery happens once, and only with every block covered;
//   - a send that ended well was delivered, and one that was delivered is not refused;
//   - what an aborted transfer reports as verified at once is final;
//   - a block reported free is not being written (decode) nor read (prefill) by the network;
//   - nobody writes to a free block (poison is intact when it is taken again);
//   - an attempt that is over is not reserved again;
//   - a prefill worker that fetches gets the decode worker's cached prefix and nothing else,
//     whatever it asks for, and a fetch is served once.
// And when the faults have stopped: every request is delivered, every transfer has ended, every
// block is free or cached, and no agent wants to wake up.
#pragma once

#include "tests/sim/seed_runner.h"

namespace sluice::testing {

SimulationProgram HandoffSimulation();

}  // namespace sluice::testing
