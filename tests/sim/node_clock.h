// The monotonic clock of one simulated process: some other epoch than the network's, a little too
// fast or too slow, now and then jumping forwards, and standing still while the machine is
// suspended. It never goes back. One thread.
#pragma once

#include <algorithm>

#include "absl/time/time.h"
#include "common/clock.h"

namespace sluice::testing {

class NodeClock : public Clock {
 public:
  // `reference` outlives this.
  explicit NodeClock(const Clock* reference)
      : reference_(reference), reference_base_(reference->Now()), base_(reference_base_) {}

  absl::Time Now() const override { return At(reference_->Now()); }

  // When it will be `local` here, on the reference clock; not before now.
  absl::Time ToReference(absl::Time local) const {
    const absl::Time now = reference_->Now();
    if (local <= At(now)) return now;
    if (local == absl::InfiniteFuture() || rate_ == 0) return absl::InfiniteFuture();
    if (rate_ == 1) return reference_base_ + (local - base_);  // most clocks, most of the time
    absl::Time when = std::max(now, reference_base_ + (local - base_) / rate_);
    // Rounding must not wake anybody a moment too early: it would find nothing due, again and
    // again.
    while (At(when) < local) when += absl::Nanoseconds(1);
    return when;
  }

  void Jump(absl::Duration forwards) {
    Rebase();
    base_ += forwards;
  }
  // Seconds here per second of the reference; 0: it stands still.
  void SetRate(double rate) {
    Rebase();
    rate_ = rate;
  }
  double rate() const { return rate_; }

 private:
  absl::Time At(absl::Time reference) const {
    const absl::Duration passed = reference - reference_base_;
    return base_ + (rate_ == 1 ? passed : passed * rate_);
  }
  void Rebase() {
    const absl::Time now = reference_->Now();
    base_ = At(now);
    reference_base_ = now;
  }

  const Clock* const reference_;
  absl::Time reference_base_;  // it was `base_` here
  absl::Time base_;
  double rate_ = 1;
};

}  // namespace sluice::testing
