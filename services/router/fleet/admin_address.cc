#include "services/router/fleet/admin_address.h"

#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/host_port.h"

namespace sluice::router {

std::string ReachableAdminAddress(const std::string& announced, const std::string& peer) {
  const std::optional<HostPort> bound = SplitHostPort(announced);
  if (!bound.has_value() || (bound->host != "0.0.0.0" && bound->host != "::")) return announced;
  absl::string_view rest = peer;
  if (!absl::ConsumePrefix(&rest, "ipv4:") && !absl::ConsumePrefix(&rest, "ipv6:")) {
    return announced;
  }
  const std::optional<HostPort> end =
      SplitHostPort(absl::StrReplaceAll(rest, {{"%5B", "["}, {"%5D", "]"}, {"%25", "%"}}));
  if (!end.has_value()) return announced;
  // An IPv4 worker as a socket for both families shows it.
  absl::string_view host = end->host;
  absl::string_view mapped = host;
  if (absl::ConsumePrefix(&mapped, "::ffff:") && absl::StrContains(mapped, '.')) host = mapped;
  return JoinHostPort(host, bound->port);
}

}  // namespace sluice::router
