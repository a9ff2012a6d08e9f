// What a thread yields to others of the processor, as nice(1) does for a process. Any thread, for
// itself; threads it starts later inherit the value.
#pragma once

namespace sluice {

// `niceness` 0..19, 0: no change. An unprivileged thread cannot go back.
void SetNicenessOfThisThread(int niceness);

}  // namespace sluice
