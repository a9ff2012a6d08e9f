#include "services/worker_runtime/router_names.h"

#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/log.h"

namespace sluice::worker {
namespace {

absl::StatusOr<std::vector<std::string>> ResolveAll(const std::string& host_port) {
  const size_t colon = host_port.rfind(':');
  if (colon == std::string::npos) return absl::InvalidArgumentError("not name:port");
  const std::string host = host_port.substr(0, colon);
  const std::string port = host_port.substr(colon + 1);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return absl::NotFoundError(error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error));
  }
  std::vector<std::string> addresses;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    char ip[NI_MAXHOST];
    if (getnameinfo(entry->ai_addr, entry->ai_addrlen, ip, sizeof(ip), nullptr, 0,
                    NI_NUMERICHOST) != 0) {
      continue;
    }
    addresses.push_back(entry->ai_family == AF_INET6 ? absl::StrCat("[", ip, "]:", port)
                                                     : absl::StrCat(ip, ":", port));
  }
  freeaddrinfo(found);
  return addresses;
}

}  // namespace

RouterNames::RouterNames(Resolver resolver)
    : resolver_(resolver != nullptr ? std::move(resolver) : ResolveAll) {}

absl::StatusOr<std::vector<std::string>> RouterNames::LookUp(const std::string& host_port) {
  absl::StatusOr<std::vector<std::string>> found = resolver_(host_port);
  if (found.ok() && found->empty()) found = absl::NotFoundError("it has no address");
  const std::string outcome = found.ok() ? "" : std::string(found.status().message());
  absl::MutexLock lock(&mu_);
  std::string& last = outcomes_[host_port];
  if (outcome == last) return found;
  last = outcome;
  if (found.ok()) {
    SLUICE_LOG(Info) << "router name " << host_port << " resolves, to "
                     << absl::StrJoin(*found, ", ");
  } else {
    SLUICE_LOG(Warning) << "router name " << host_port << " does not resolve: " << outcome;
  }
  return found;
}

std::string RouterNames::Failures() const {
  absl::MutexLock lock(&mu_);
  std::string failures;
  for (const auto& [name, why] : outcomes_) {
    if (why.empty()) continue;
    absl::StrAppend(&failures, failures.empty() ? "" : "; ", name, ": ", why);
  }
  return failures;
}

}  // namespace sluice::worker
