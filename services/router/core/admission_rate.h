// How fast requests have left the admission queue of late, and with it how long the queue will
// take: what a refused client is told to wait. Owned by RouterCore; not thread-safe.
#pragma once

#include <algorithm>
#include <cmath>

#include "absl/time/time.h"

namespace sluice::router {

class AdmissionRate {
 public:
  static constexpr absl::Duration kMinWait = absl::Seconds(1);
  static constexpr absl::Duration kMaxWait = absl::Seconds(30);

  // A request was admitted. `now` must not go back.
  void Count(absl::Time now) {
    recent_ = Recent(now) + 1;
    counted_at_ = now;
  }

  // How long it takes until so many more are admitted, if it goes on as of late; within the bounds.
  absl::Duration TimeToAdmit(int num_requests, absl::Time now) const {
    const double per_second = Recent(now) / absl::ToDoubleSeconds(kMemory);
    if (num_requests >= per_second * absl::ToDoubleSeconds(kMaxWait)) return kMaxWait;
    return std::max(kMinWait, absl::Seconds(num_requests / per_second));
  }

 private:
  static constexpr absl::Duration kMemory = absl::Seconds(10);

  // Admissions, each weighing e times less for every kMemory that it lies back.
  double Recent(absl::Time now) const {
    return recent_ * std::exp(-absl::FDivDuration(now - counted_at_, kMemory));
  }

  double recent_ = 0;  // at counted_at_
  absl::Time counted_at_ = absl::InfinitePast();
};

}  // namespace sluice::router
