// "host:port" in text, as it is dialled and shown; the brackets of IPv6 addresses are put around
// and taken off in this one place. Any thread.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace sluice {

// "10.0.0.7", 80 -> "10.0.0.7:80"; "::1" or "[::1]", 80 -> "[::1]:80".
std::string JoinHostPort(absl::string_view host, int port);

struct HostPort {
  std::string host;  // without brackets
  int port = 0;      // 1..65535
};
// The opposite. Nothing is looked up: the host may be any text.
std::optional<HostPort> SplitHostPort(absl::string_view address);

}  // namespace sluice
