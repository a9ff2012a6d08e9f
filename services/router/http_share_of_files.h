// How many of the router's open files HTTP connections may take. Public gRPC and the workers' port
// have no bound of their own, and gRPC 1.51 closes a listener for good once an accept finds no
// descriptor (docs/reliability.md).
#pragma once

#include <cstdint>

namespace sluice::router {

// HTTP's share of `max_files`: at most `max_connections`, and never what the others need. Logs a
// warning if it is less than `max_connections`.
int HttpShareOfFiles(int64_t max_files, int max_connections);

}  // namespace sluice::router
