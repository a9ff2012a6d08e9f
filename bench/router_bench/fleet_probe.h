// What a worker's message costs on its way without any router: one token over the fleet protocol,
// from the production client to a gRPC service that only notes its arrival, both in this process.
// Most of what the router adds to a lone token is this. Takes about half a second.
#pragma once

namespace sluice::bench {

// Median one-way time in microseconds, a message every millisecond; 0 when it cannot be measured.
double FleetStreamMicroseconds();

}  // namespace sluice::bench
