#include "services/router/http/silent_client.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cstdint>

namespace sluice::router {

void BreakWhenClientIsSilent(int fd) {
  const auto set = [fd](int level, int option, int64_t value) {
    const int number = static_cast<int>(value);
    setsockopt(fd, level, option, &number, sizeof(number));
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, absl::ToInt64Seconds(kSilenceBeforeProbes));
  set(IPPROTO_TCP, TCP_KEEPINTVL, absl::ToInt64Seconds(kProbeInterval));
  set(IPPROTO_TCP, TCP_KEEPCNT, kMaxProbes);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, absl::ToInt64Milliseconds(kMaxClientSilence));
}

bool HasLeft(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof(info);
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return false;
  return info.tcpi_state != TCP_ESTABLISHED;
}

}  // namespace sluice::router
