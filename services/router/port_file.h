// Tells whoever started the router which ports it took:
// {"pid","http_port","grpc_port","fleet_port", "admin_port"}. Written to a temporary name and
// renamed, so a reader sees all of it or nothing.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace sluice::router {

struct RouterPorts {
  int http = 0, grpc = 0, fleet = 0, admin = 0;
};

// INTERNAL names the path.
absl::Status WritePortFile(const std::string& path, const RouterPorts& ports);

}  // namespace sluice::router
