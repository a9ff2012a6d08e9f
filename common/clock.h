// Monotonic time. Values are absl::Time for its arithmetic, but their epoch means nothing: only
// differences count, and they never leave the process (durations go on the wire, not times).
#pragma once

#include "absl/time/time.h"

namespace sluice {

// CLOCK_MONOTONIC. Any thread.
absl::Time MonotonicNow();

// For objects that must be driven by a fake clock in tests. Implementations are thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

// The process-wide real clock.
const Clock& RealClock();

}  // namespace sluice
