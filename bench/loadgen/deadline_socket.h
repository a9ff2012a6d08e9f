// A TCP connection whose every operation ends at a deadline: blocking Asio sockets have none, and a
// server that stops in the middle of an answer would stop its client too. A synchronous stream for
// Boost.Beast. One thread.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/system/system_error.hpp>
#include <string>

#include "absl/time/time.h"

namespace sluice::loadgen {

class DeadlineSocket {
 public:
  using error_code = boost::system::error_code;

  DeadlineSocket() : socket_(io_) {}

  // A MonotonicNow() value; operations that would pass it fail with timed_out.
  void set_deadline(absl::Time deadline) { deadline_ = deadline; }
  // Resolving the name is up to the system, and not bounded.
  // An open connection is closed first.
  error_code Connect(const std::string& host, const std::string& port);
  void Close();
  bool is_open() const { return socket_.is_open(); }
  // False: the peer has closed, or said something that nobody asked for. REQUIRES: is_open().
  bool IsQuiet();

  template <typename Buffers>
  size_t read_some(const Buffers& buffers, error_code& error) {
    return Repeat(&DeadlineSocket::AwaitReadable, error,
                  [&] { return socket_.read_some(buffers, error); });
  }
  template <typename Buffers>
  size_t write_some(const Buffers& buffers, error_code& error) {
    return Repeat(&DeadlineSocket::AwaitWritable, error,
                  [&] { return socket_.write_some(buffers, error); });
  }
  template <typename Buffers>
  size_t read_some(const Buffers& buffers) {
    return OrThrow([&](error_code& error) { return read_some(buffers, error); });
  }
  template <typename Buffers>
  size_t write_some(const Buffers& buffers) {
    return OrThrow([&](error_code& error) { return write_some(buffers, error); });
  }

 private:
  // The socket does not block: what would have to wait waits here, until the deadline.
  template <typename Operation>
  size_t Repeat(error_code (DeadlineSocket::*await)(), error_code& error, Operation operation) {
    while (true) {
      const size_t bytes = operation();
      if (error != boost::asio::error::would_block) return bytes;
      if ((error = (this->*await)())) return 0;
    }
  }
  template <typename Operation>
  static size_t OrThrow(Operation operation) {
    error_code error;
    const size_t bytes = operation(error);
    if (error) throw boost::system::system_error(error);
    return bytes;
  }
  error_code AwaitReadable();
  error_code AwaitWritable();
  error_code Await(short events);

  boost::asio::io_context io_;
  boost::asio::ip::tcp::socket socket_;
  absl::Time deadline_ = absl::InfiniteFuture();
};

}  // namespace sluice::loadgen
