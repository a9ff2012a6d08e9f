// A wall clock that has just been set back, for tests: while one lives, the process reads it ahead
// of the kernel's, so whatever sleeps until an instant of it sleeps that much longer. The functions
// that read it are the executable's own, for the libraries in its process too; include this in one
// source of a test only.
#pragma once

#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#include "absl/time/time.h"

namespace sluice::testing {

inline std::atomic<int64_t> wall_clock_ahead_seconds{0};

class WallClockStep {
 public:
  explicit WallClockStep(absl::Duration ahead) {
    wall_clock_ahead_seconds = absl::ToInt64Seconds(ahead);
  }
  ~WallClockStep() { wall_clock_ahead_seconds = 0; }
  WallClockStep(const WallClockStep&) = delete;
  WallClockStep& operator=(const WallClockStep&) = delete;
};

}  // namespace sluice::testing

extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const long result = syscall(SYS_clock_gettime, clock, time);
  if (result == 0 && clock == CLOCK_REALTIME) {
    time->tv_sec += sluice::testing::wall_clock_ahead_seconds.load(std::memory_order_relaxed);
  }
  return static_cast<int>(result);
}

extern "C" int gettimeofday(timeval* __restrict time, void* __restrict zone) noexcept {
  const long result = syscall(SYS_gettimeofday, time, zone);
  if (result == 0) {
    time->tv_sec += sluice::testing::wall_clock_ahead_seconds.load(std::memory_order_relaxed);
  }
  return static_cast<int>(result);
}
