#include "common/host_port.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace sluice {

std::string JoinHostPort(absl::string_view host, int port) {
  const bool bare_ipv6 = absl::StrContains(host, ':') && !absl::StartsWith(host, "[");
  return bare_ipv6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

std::optional<HostPort> SplitHostPort(absl::string_view address) {
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos) return std::nullopt;
  absl::string_view host = address.substr(0, colon);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  } else if (absl::StrContains(host, ':')) {
    return std::nullopt;  // an IPv6 address without brackets: who knows what its end means
  }
  HostPort parts;
  if (host.empty() || !absl::SimpleAtoi(address.substr(colon + 1), &parts.port) || parts.port < 1 ||
      parts.port > 65535) {
    return std::nullopt;
  }
  parts.host = std::string(host);
  return parts;
}

}  // namespace sluice
