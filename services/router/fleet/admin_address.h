// Where others reach a worker's admin port. A worker that listens on every interface cannot know by
// which of its addresses; the router sees one of them. Any thread.
#pragma once

#include <string>

namespace sluice::router {

// `announced`, with its host replaced by that of `peer` (gRPC's name for the worker's end of the
// stream, "ipv4:10.0.0.7:51034" or "ipv6:%5Bfd00::7%5D:51034") if it is 0.0.0.0 or [::]. A worker
// behind an address translation is shown under the translator's.
std::string ReachableAdminAddress(const std::string& announced, const std::string& peer);

}  // namespace sluice::router
