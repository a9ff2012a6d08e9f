// How many files the router may have open, and how many of them HTTP connections may take. Public
// gRPC and the workers' port have no bound of their own, and gRPC 1.51 closes a listener for good
// once an accept finds no descriptor (docs/reliability.md).
#pragma once

#include <cstdint>

namespace sluice::router {

// HTTP's share of `max_files`: at most `max_connections`, and never what the others need.
int HttpShareOfFiles(int64_t max_files, int max_connections);

// Raises the process's soft limit to the hard one (shells start programs with fewer files than they
// allow) and returns HTTP's share. Logs a warning if that is less than `max_connections`.
int RaiseFileLimit(int max_connections);

}  // namespace sluice::router
