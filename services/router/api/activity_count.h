// Counts what still needs an object; the object's end waits for zero. Thread-safe.
#pragma once

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/monotonic_cond_var.h"

namespace sluice::router {

class ActivityCount {
 public:
  void Add(int by) {
    absl::MutexLock lock(&mu_);
    count_ += by;
    if (count_ == 0) zero_.SignalAll();
  }
  int Get() const {
    absl::MutexLock lock(&mu_);
    return count_;
  }
  // False on timeout.
  bool AwaitZero(absl::Duration timeout) const {
    absl::MutexLock lock(&mu_);
    return zero_.Await(&mu_,
                       absl::Condition(
                           +[](const int* count) { return *count == 0; }, &count_),
                       timeout);
  }

 private:
  mutable absl::Mutex mu_;
  mutable MonotonicCondVar zero_;
  int count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace sluice::router
