// What a lone token costs on its way without any router: one token a message over the fleet
// protocol, from the production client to a gRPC service that only notes its arrival, both in this
// process. What the router adds is what its own tokens take beyond that. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace sluice::bench {

class FleetProbe {
 public:
  // Returns when the stream is up.
  static absl::StatusOr<std::unique_ptr<FleetProbe>> Start();
  virtual ~FleetProbe() = default;

  // Sends a token every `interval` for as long as `window`.
  virtual void Run(absl::Duration window, absl::Duration interval) = 0;
  // One-way nanoseconds of every token since the last call.
  virtual std::vector<int64_t> TakeDelays() = 0;
};

}  // namespace sluice::bench
