// What the kernel and the load generator alone can do with a scenario's streams: the same bytes at
// the same times over as many loopback connections, but no router between. What the router adds is
// to be read beside it. One call at a time; takes `window` and a little more.
#pragma once

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sluice::bench {

struct FanOutShape {
  int num_connections = 1;
  int num_bursts = 1;            // in which the connections get their events in turn, as of workers
  double events_per_second = 1;  // of each connection
  int event_bytes = 230;         // a chunk of a completion, framed
  absl::Duration window;
};

struct FanOut {
  double events_per_second = 0;  // received
  // Microseconds from the begin of a burst's sending to the receipt of an event.
  double p50 = 0, p99 = 0;
};

// A child process sends, the caller receives with epoll.
absl::StatusOr<FanOut> MeasureFanOut(const FanOutShape& shape);

}  // namespace sluice::bench
