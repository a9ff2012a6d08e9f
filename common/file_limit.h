// How many files this process may have open. A library that finds no descriptor for a connection
// may give its listener up for good (gRPC 1.51, UCX 1.13), so programs that serve raise the limit
// first.
#pragma once

#include <cstdint>

namespace sluice {

// Raises the soft limit to the hard one (shells start programs with fewer files than they allow);
// the limit then. Logs a warning if that fails.
int64_t RaiseFileLimit();

}  // namespace sluice
