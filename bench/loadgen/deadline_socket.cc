#include "bench/loadgen/deadline_socket.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "common/clock.h"

namespace sluice::loadgen {

namespace asio = boost::asio;

boost::system::error_code DeadlineSocket::Connect(const std::string& host,
                                                  const std::string& port) {
  error_code error;
  asio::ip::tcp::resolver resolver(io_);
  const auto endpoints = resolver.resolve(host, port, error);
  if (error) return error;
  error = asio::error::host_not_found;
  for (const auto& endpoint : endpoints) {
    Close();
    error_code ignored;
    socket_.open(endpoint.endpoint().protocol(), error);
    if (error) continue;
    socket_.non_blocking(true, ignored);
    socket_.connect(endpoint, error);
    if (error == asio::error::in_progress || error == asio::error::would_block) {
      error = AwaitWritable();
      if (!error) {
        int outcome = 0;
        socklen_t size = sizeof(outcome);
        getsockopt(socket_.native_handle(), SOL_SOCKET, SO_ERROR, &outcome, &size);
        error = error_code(outcome, boost::system::system_category());
      }
    }
    if (error) continue;
    socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    return error;
  }
  Close();
  return error;
}

void DeadlineSocket::Close() {
  error_code ignored;
  socket_.close(ignored);
}

bool DeadlineSocket::IsQuiet() {
  char byte = 0;
  const ssize_t got = recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

boost::system::error_code DeadlineSocket::AwaitReadable() { return Await(POLLIN); }
boost::system::error_code DeadlineSocket::AwaitWritable() { return Await(POLLOUT); }

boost::system::error_code DeadlineSocket::Await(short events) {
  constexpr absl::Duration kLongestPoll = absl::Hours(1);
  while (true) {
    const absl::Duration left = deadline_ - MonotonicNow();
    if (left <= absl::ZeroDuration()) return asio::error::timed_out;
    pollfd fd = {socket_.native_handle(), events, 0};
    // Rounded up: a poll that returns just before the deadline would be repeated without a pause.
    const int ready =
        poll(&fd, 1, static_cast<int>(absl::ToInt64Milliseconds(std::min(left, kLongestPoll)) + 1));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return {errno, boost::system::system_category()};
  }
}

}  // namespace sluice::loadgen
