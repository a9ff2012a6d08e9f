// What a hop over loopback costs on this machine at this moment when nothing else happens: a few
// bytes every millisecond, whoever receives them asleep in epoll. Measured without and with a
// thread in between that only passes them on; the difference is what any router adds. Takes about a
// second. Any thread.
#pragma once

#include "absl/status/statusor.h"

namespace sluice::bench {

// Medians, microseconds.
struct RelayCost {
  double direct = 0;  // one way between two threads
  double added = 0;   // by a thread that only receives and sends
};

absl::StatusOr<RelayCost> MeasureRelay();

}  // namespace sluice::bench
