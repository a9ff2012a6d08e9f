// Ends the connections of clients that fell silent: their host or the network is gone, so that
// neither FIN nor reset ever comes. Without it the kernel would believe in an idle one for hours
// and in one that acknowledges nothing for a quarter of an hour, and a request would keep its place
// among the running ones as long.
#pragma once

#include "absl/time/time.h"

namespace sluice::router {

// Probes of an idle connection. Three, so that a lost packet or a short outage ends nothing.
inline constexpr absl::Duration kSilenceBeforeProbes = absl::Seconds(15);
inline constexpr absl::Duration kProbeInterval = absl::Seconds(5);
inline constexpr int kMaxProbes = 3;
// What the probes take together. It bounds bytes on their way, too, and must be no less, because
// Linux stops probing after it. A client that lives but has no room for a byte this long is ended
// as well.
inline constexpr absl::Duration kMaxClientSilence = absl::Seconds(30);

// Lets the kernel break the TCP connection `fd` once its client has been silent for
// kMaxClientSilence; reads and writes then fail. Best effort: what the kernel refuses stays unset.
void BreakWhenClientIsSilent(int fd);

// Whether the client has closed, half-closed or reset the TCP connection `fd`; told without reading
// what it sent before.
bool HasLeft(int fd);

}  // namespace sluice::router
