// How a loop is cut into tasks for the thread pool: in shares that shrink. The first tasks are
// large, so that claiming them costs nothing and weights come in long runs; the last ones are
// small, so that no thread waits long for another one's last task (Hummel, Schonberg, Flynn:
// "Factoring: a method for scheduling parallel loops", 1992).
#pragma once

#include <cstdint>

namespace sluice {

// How much of the work left, in units of any kind, the next task takes: a third of a thread's even
// share, rounded up. REQUIRES: left >= 0, num_threads >= 1.
inline int64_t NextShare(int64_t left, int num_threads) {
  const int64_t shares = int64_t{3} * num_threads;
  return (left + shares - 1) / shares;
}

}  // namespace sluice
