#include "common/clock.h"

#include <chrono>

namespace sluice {
namespace {

class SteadyClock : public Clock {
 public:
  absl::Time Now() const override { return MonotonicNow(); }
};

}  // namespace

absl::Time MonotonicNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

const Clock& RealClock() {
  static const SteadyClock clock;
  return clock;
}

}  // namespace sluice
