// Clients of the HTTP server that are silent.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "services/router/http/silent_client.h"
#include "tests/router_api/http_fixture.h"

namespace sluice::router {
namespace {

// The server's end of the connection from this local port: it lives in this process. -1: not found.
int ServerSocketOf(int client_port) {
  rlimit descriptors = {};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  for (int fd = 0; fd < static_cast<int>(std::min<rlim_t>(descriptors.rlim_cur, 65536)); ++fd) {
    sockaddr_in peer = {};
    socklen_t size = sizeof(peer);
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0 &&
        peer.sin_family == AF_INET && ntohs(peer.sin_port) == client_port) {
      return fd;
    }
  }
  return -1;
}

int OptionOf(int fd, int level, int option) {
  int value = -1;
  socklen_t size = sizeof(value);
  return getsockopt(fd, level, option, &value, &size) == 0 ? value : -1;
}

class SilentClientTest : public HttpFixture {};

// A host that is gone cannot be had without privileges, and would take half a minute: what the
// kernel was told must do.
TEST_F(SilentClientTest, TheKernelIsToldToNoticeThem) {
  HttpClient client(port());
  ASSERT_EQ(client.Get("/livez").status, 200);  // it has been accepted
  const int fd = ServerSocketOf(client.local_port());
  ASSERT_GE(fd, 0);
  EXPECT_EQ(OptionOf(fd, SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(OptionOf(fd, IPPROTO_TCP, TCP_KEEPIDLE), 15);
  EXPECT_EQ(OptionOf(fd, IPPROTO_TCP, TCP_KEEPINTVL), 5);
  EXPECT_EQ(OptionOf(fd, IPPROTO_TCP, TCP_KEEPCNT), 3);
  // In milliseconds. Less would end the probing before all probes have had their time.
  EXPECT_EQ(OptionOf(fd, IPPROTO_TCP, TCP_USER_TIMEOUT), (15 + 3 * 5) * 1000);
}

// Nothing that a connection needs, only what ends it sooner.
TEST_F(SilentClientTest, ASocketThatCannotBeSetIsNoError) {
  BreakWhenClientIsSilent(-1);
  const int datagrams = socket(AF_INET, SOCK_DGRAM, 0);
  BreakWhenClientIsSilent(datagrams);
  close(datagrams);
}

}  // namespace
}  // namespace sluice::router
