#include "bench/router_bench/fan_out_probe.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "bench/router_bench/token_ledger.h"
#include "common/clock.h"

namespace sluice::bench {
namespace {

constexpr int kConnectTimeoutMs = 5'000;

sockaddr* Raw(sockaddr_in* address) { return reinterpret_cast<sockaddr*>(address); }

// The sockets of one side.
class Sockets {
 public:
  ~Sockets() {
    for (const int fd : fds_) close(fd);
  }

  bool Connect(int count, sockaddr_in address) {
    for (int i = 0; i < count; ++i) {
      const int fd = Add(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      if (fd < 0 || connect(fd, Raw(&address), sizeof(address)) != 0) return false;
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    return true;
  }
  bool Accept(int count, int listener) {
    for (int i = 0; i < count; ++i) {
      // The other side may have failed on the way.
      pollfd incoming{listener, POLLIN, 0};
      if (poll(&incoming, 1, kConnectTimeoutMs) != 1) return false;
      if (Add(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC)) < 0) return false;
    }
    return true;
  }

  const std::vector<int>& fds() const { return fds_; }

 private:
  int Add(int fd) {
    if (fd >= 0) fds_.push_back(fd);
    return fd;
  }

  std::vector<int> fds_;
};

// Events are as long as `event_bytes` and begin with the time of their burst.
void Send(const FanOutShape& shape, const std::vector<int>& sockets) {
  std::string event(static_cast<size_t>(shape.event_bytes), 'x');
  const absl::Duration turn = absl::Seconds(1 / shape.events_per_second) / shape.num_bursts;
  const absl::Time start = MonotonicNow();
  absl::Time next = start;
  for (int burst = 0; MonotonicNow() - start < shape.window;
       burst = (burst + 1) % shape.num_bursts) {
    const absl::Time now = MonotonicNow();
    next = std::max(next + turn, now - turn);
    absl::SleepFor(next - now);
    const int64_t sent_ns = NowNanoseconds();
    std::memcpy(event.data(), &sent_ns, sizeof(sent_ns));
    for (size_t i = static_cast<size_t>(burst); i < sockets.size();
         i += static_cast<size_t>(shape.num_bursts)) {
      // A receiver that cannot keep up lets events fall out here instead of blocking the probe.
      send(sockets[i], event.data(), event.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    }
  }
}

std::vector<int64_t> Receive(const FanOutShape& shape, const std::vector<int>& sockets) {
  std::vector<int64_t> delays_ns;
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  for (const int fd : sockets) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  }
  std::array<epoll_event, 256> ready;
  std::array<char, 16 * 1024> buffer;
  for (size_t num_ended = 0; num_ended < sockets.size();) {
    const int count = epoll_wait(epoll, ready.data(), static_cast<int>(ready.size()), -1);
    for (int i = 0; i < count; ++i) {
      const int fd = ready[static_cast<size_t>(i)].data.fd;
      const ssize_t size = recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (size <= 0) {
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        epoll_ctl(epoll, EPOLL_CTL_DEL, fd, nullptr);
        ++num_ended;
        continue;
      }
      const int64_t now_ns = NowNanoseconds();
      for (ssize_t at = 0; at + shape.event_bytes <= size; at += shape.event_bytes) {
        int64_t sent_ns = 0;
        std::memcpy(&sent_ns, buffer.data() + at, sizeof(sent_ns));
        delays_ns.push_back(now_ns - sent_ns);
      }
    }
  }
  close(epoll);
  return delays_ns;
}

double Microseconds(std::vector<int64_t>* nanoseconds, double share) {
  const auto at = static_cast<long>(share * static_cast<double>(nanoseconds->size() - 1));
  std::nth_element(nanoseconds->begin(), nanoseconds->begin() + at, nanoseconds->end());
  return static_cast<double>((*nanoseconds)[static_cast<size_t>(at)]) / 1000;
}

}  // namespace

absl::StatusOr<FanOut> MeasureFanOut(const FanOutShape& shape) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (bind(listener, Raw(&address), size) != 0 || listen(listener, SOMAXCONN) != 0 ||
      getsockname(listener, Raw(&address), &size) != 0) {
    close(listener);
    return absl::ErrnoToStatus(errno, "the probe cannot listen");
  }
  // A process of its own: one alone may not have both ends of so many connections open.
  const pid_t sender = fork();
  if (sender == 0) {
    Sockets sockets;
    const bool ok = sockets.Connect(shape.num_connections, address);
    if (ok) Send(shape, sockets.fds());
    _exit(ok ? 0 : 1);
  }
  Sockets sockets;
  const bool accepted = sender > 0 && sockets.Accept(shape.num_connections, listener);
  close(listener);
  std::vector<int64_t> delays_ns;
  if (accepted) delays_ns = Receive(shape, sockets.fds());
  if (sender > 0) waitpid(sender, nullptr, 0);
  if (delays_ns.empty()) return absl::InternalError("the probe received nothing");
  FanOut result;
  result.events_per_second =
      static_cast<double>(delays_ns.size()) / absl::ToDoubleSeconds(shape.window);
  result.p50 = Microseconds(&delays_ns, 0.5);
  result.p99 = Microseconds(&delays_ns, 0.99);
  return result;
}

}  // namespace sluice::bench
