// The name a request goes by in answers, headers and logs of both fronts. Pure but for the random
// ids; any thread.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace sluice::router {

// The client's own id if it is short and of letters, digits and -_.:/+= alone, so that it can go
// into HTTP headers, gRPC metadata (where gRPC ends the process over other bytes), JSON and logs;
// else a new one.
std::string RequestIdOr(absl::string_view sent);

}  // namespace sluice::router
