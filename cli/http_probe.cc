#include "cli/http_probe.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/host_port.h"

namespace sluice::cli {
namespace {

constexpr size_t kMaxAnswerBytes = 256 << 10;

// Sends `request` and reads until the peer closes; "" on any trouble.
std::string Exchange(int fd, const addrinfo& address, const std::string& request) {
  if (connect(fd, address.ai_addr, address.ai_addrlen) != 0) return "";
  if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size())) {
    return "";
  }
  std::string answer;
  char buffer[4096];
  while (answer.size() < kMaxAnswerBytes) {
    const ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
    if (got <= 0) break;
    answer.append(buffer, static_cast<size_t>(got));
  }
  return answer;
}

absl::StatusOr<ProbeAnswer> Probe(const addrinfo& address, const std::string& name,
                                  const std::string& path, absl::Duration timeout) {
  const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::UnavailableError("cannot make a socket");
  const timeval limit = absl::ToTimeval(timeout);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  const std::string answer = Exchange(
      fd, address,
      absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: ", name, "\r\nConnection: close\r\n\r\n"));
  close(fd);

  // "HTTP/1.1 200 OK"
  const absl::string_view text = answer;
  ProbeAnswer probe;
  if (text.size() < 12 || !absl::SimpleAtoi(text.substr(9, 3), &probe.http_status)) {
    return absl::UnavailableError(absl::StrCat(name, " does not answer"));
  }
  const size_t body = text.find("\r\n\r\n");
  if (body != absl::string_view::npos) {
    probe.body = std::string(absl::StripTrailingAsciiWhitespace(text.substr(body + 4)));
  }
  return probe;
}

}  // namespace

absl::StatusOr<ProbeAnswer> ProbeHttp(int port, const std::string& path, absl::Duration timeout) {
  return ProbeHttpAt(absl::StrCat("127.0.0.1:", port), path, timeout);
}

absl::StatusOr<ProbeAnswer> ProbeHttpAt(const std::string& address, const std::string& path,
                                        absl::Duration timeout) {
  std::optional<HostPort> to = SplitHostPort(address);
  if (!to.has_value()) {
    return absl::UnavailableError(absl::StrCat("'", address, "' is not an address and port"));
  }
  if (to->host == "localhost") to->host = "127.0.0.1";
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* numeric = nullptr;
  if (getaddrinfo(to->host.c_str(), absl::StrCat(to->port).c_str(), &hints, &numeric) != 0) {
    return absl::UnavailableError(absl::StrCat("'", to->host, "' is not an IP address"));
  }
  absl::StatusOr<ProbeAnswer> answer = Probe(*numeric, address, path, timeout);
  freeaddrinfo(numeric);
  return answer;
}

}  // namespace sluice::cli
