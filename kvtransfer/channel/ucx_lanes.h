// Which way an endpoint's payload really goes. UCX chooses lanes by itself and tells only in print
// (ucp_ep_print_info), so this reads the print. Pure; any thread.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace sluice {

// What UCX printed about the lanes, one "transport/device role role" a lane, joined by "; ". Empty
// if nothing was recognised.
std::string LanesOf(absl::string_view endpoint_info);

// "self", "shm", "tcp" or "rdma": the slowest among the lanes that carry active messages or
// rendezvous reads, since a payload may be split over them. Empty when unknown.
std::string TransportOf(absl::string_view lanes);

}  // namespace sluice
