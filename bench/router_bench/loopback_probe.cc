#include "bench/router_bench/loopback_probe.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <thread>
#include <vector>

#include "bench/router_bench/token_ledger.h"

namespace sluice::bench {

double LoopbackMicroseconds() {
  constexpr int kRounds = 300;
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const raw = reinterpret_cast<sockaddr*>(&address);
  const bool listens = bind(listener, raw, size) == 0 && listen(listener, 1) == 0 &&
                       getsockname(listener, raw, &size) == 0;
  const int near = socket(AF_INET, SOCK_STREAM, 0);
  std::vector<double> times;
  if (listens && connect(near, raw, size) == 0) {
    const int far = accept(listener, nullptr, nullptr);
    const int on = 1;
    setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    std::thread receiver([&times, far] {
      const int epoll = epoll_create1(0);
      epoll_event event{};
      event.events = EPOLLIN;
      epoll_ctl(epoll, EPOLL_CTL_ADD, far, &event);
      int64_t sent = 0;
      while (epoll_wait(epoll, &event, 1, 1000) == 1 && recv(far, &sent, sizeof(sent), 0) > 0) {
        times.push_back(static_cast<double>(NowNanoseconds() - sent) / 1000);
      }
      close(epoll);
    });
    for (int i = 0; i < kRounds; ++i) {
      const timespec pause{0, 200'000};
      nanosleep(&pause, nullptr);
      const int64_t now = NowNanoseconds();
      if (send(near, &now, sizeof(now), MSG_NOSIGNAL) != sizeof(now)) break;
    }
    shutdown(near, SHUT_WR);
    receiver.join();
    close(far);
  }
  close(near);
  close(listener);
  if (times.empty()) return 0;
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace sluice::bench
