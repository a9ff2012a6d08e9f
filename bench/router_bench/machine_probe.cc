#include "bench/router_bench/machine_probe.h"

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

int64_t NowNanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

double ClockGigahertz() {
#if defined(__x86_64__)
  constexpr int64_t kRounds = 2'000'000;
  constexpr int64_t kCyclesPerRound = 4 * 3;
  double best = 0;
  for (int attempt = 0; attempt < 3; ++attempt) {
    const int64_t start = NowNanoseconds();
    int64_t value = 3;
    for (int64_t i = 0; i < kRounds; ++i) {
      // Each needs the one before: three cycles on every x86 core of these years.
      asm volatile("imul %0, %0\n imul %0, %0\n imul %0, %0\n imul %0, %0" : "+r"(value));
    }
    best = std::max(best, static_cast<double>(kRounds * kCyclesPerRound) /
                              static_cast<double>(NowNanoseconds() - start));
  }
  return best;
#else
  return 0;
#endif
}

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
