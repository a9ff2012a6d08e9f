#include "bench/router_bench/relay_probe.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/router_bench/token_ledger.h"
#include "common/status_macros.h"

namespace sluice::bench {
namespace {

constexpr int kMessages = 400;
constexpr absl::Duration kInterval = absl::Milliseconds(1);
constexpr int kGiveUpMs = 1000;

// Two connected TCP sockets of this process.
class Link {
 public:
  Link() = default;
  ~Link() {
    if (near_ >= 0) close(near_);
    if (far_ >= 0) close(far_);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  absl::Status Connect() {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const raw = reinterpret_cast<sockaddr*>(&address);
    if (bind(listener, raw, size) == 0 && listen(listener, 1) == 0 &&
        getsockname(listener, raw, &size) == 0) {
      near_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (connect(near_, raw, size) == 0) {
        far_ = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      }
    }
    const int error = errno;
    close(listener);
    if (far_ < 0) return absl::ErrnoToStatus(error, "a loopback connection for the relay probe");
    const int on = 1;
    setsockopt(near_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return absl::OkStatus();
  }

  bool Send(int64_t value) const {
    return send(near_, &value, sizeof(value), MSG_NOSIGNAL) == sizeof(value);
  }
  void EndSending() const { shutdown(near_, SHUT_WR); }

  // fn(value) for each that comes, until the other end ends or falls silent.
  template <typename Fn>
  void Receive(Fn fn) const {
    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    epoll_event event{};
    event.events = EPOLLIN;
    epoll_ctl(epoll, EPOLL_CTL_ADD, far_, &event);
    int64_t value = 0;
    while (epoll_wait(epoll, &event, 1, kGiveUpMs) == 1 &&
           recv(far_, &value, sizeof(value), 0) == sizeof(value)) {
      fn(value);
    }
    close(epoll);
  }

 private:
  int near_ = -1, far_ = -1;
};

double MedianMicroseconds(std::vector<int64_t> nanoseconds) {
  if (nanoseconds.empty()) return 0;
  const auto middle = nanoseconds.begin() + static_cast<long>(nanoseconds.size() / 2);
  std::nth_element(nanoseconds.begin(), middle, nanoseconds.end());
  return static_cast<double>(*middle) / 1000;
}

// Sends the time on `first` and reads it from `last`; a relay passes on between them, unless they
// are one.
double OneWay(const Link& first, const Link& last) {
  std::vector<int64_t> delays;
  std::thread receiver(
      [&] { last.Receive([&](int64_t sent) { delays.push_back(NowNanoseconds() - sent); }); });
  std::thread relay;
  if (&first != &last) {
    relay = std::thread([&] {
      first.Receive([&](int64_t sent) { last.Send(sent); });
      last.EndSending();
    });
  }
  for (int i = 0; i < kMessages; ++i) {
    absl::SleepFor(kInterval);
    if (!first.Send(NowNanoseconds())) break;
  }
  first.EndSending();
  if (relay.joinable()) relay.join();
  receiver.join();
  return MedianMicroseconds(std::move(delays));
}

}  // namespace

absl::StatusOr<RelayCost> MeasureRelay() {
  Link one, first, last;
  for (Link* const link : {&one, &first, &last}) SLUICE_RETURN_IF_ERROR(link->Connect());
  RelayCost cost;
  cost.direct = OneWay(one, one);
  cost.added = OneWay(first, last) - cost.direct;
  return cost;
}

}  // namespace sluice::bench
