// A condition variable for absl::Mutex whose timeouts are of CLOCK_MONOTONIC. Those of Abseil's own
// timed waits end at an instant of the wall clock: when that is set back by an hour, a thread that
// meant to sleep for 200 ms sleeps for an hour. tests/lint/clock_test.py keeps them out.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace sluice {

// All waits are made with the same mutex. What they wait for is changed under it; the signal may
// come afterwards, when whoever wakes up finds the mutex free. One that nobody waits for costs
// nothing.
class MonotonicCondVar {
 public:
  MonotonicCondVar() = default;
  MonotonicCondVar(const MonotonicCondVar&) = delete;
  MonotonicCondVar& operator=(const MonotonicCondVar&) = delete;

  // Gives `mu` up until a signal or `timeout`, or a little earlier: look again at what is awaited.
  void Wait(absl::Mutex* mu, absl::Duration timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // Until `condition` holds, whose changes must be signalled. False on timeout.
  bool Await(absl::Mutex* mu, const absl::Condition& condition, absl::Duration timeout)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  void Signal() { Notify(/*all=*/false); }
  void SignalAll() { Notify(/*all=*/true); }

 private:
  void Notify(bool all);

  std::atomic<int> waiters_{0};  // changed under the callers' mutex
  // Held only between giving up the callers' mutex and falling asleep, and to wait for that moment.
  std::mutex asleep_mu_;
  std::condition_variable asleep_;
};

}  // namespace sluice
