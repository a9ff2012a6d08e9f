// Writing: at once what the kernel takes, the rest as the client reads, and an end for who does
// not.
#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>

#include "common/clock.h"
#include "services/router/http/http_connection.h"

namespace sluice::router {
namespace {

namespace asio = boost::asio;

using boost::system::error_code;

// Buffers that grew beyond this, for a large answer or a slow client, are given back.
constexpr size_t kMaxIdleBufferBytes = 16 * 1024;
// What is in flight, 16 MiB at most, is gone after so many of them, however steadily it is read.
constexpr int kMaxWriteTimeouts = 10;

// Bytes that the client's kernel has not acknowledged yet.
int KernelHolds(int fd) {
  int bytes = 0;
  return ioctl(fd, SIOCOUTQ, &bytes) == 0 ? bytes : 0;
}

}  // namespace

void HttpConnection::WriteMore() {
  if (corked_ || phase_ != Phase::kAnswering) return;
  if (!writing_ && !client_gone_ && !outbox_.empty()) {
    // Most often the kernel takes it all, without an operation to wait for.
    error_code error;
    const size_t sent = socket_.write_some(asio::buffer(outbox_), error);
    if (error && error != asio::error::would_block && error != asio::error::try_again) {
      return OnClientGone();  // and from there back to here, later
    }
    if (error || sent < outbox_.size()) {
      in_flight_.assign(outbox_, sent);
      WriteRest();
    }
    ClearOutbox();
  }
  CountBuffered();
  if (writing_) return EvictIfSlow();
  if (client_gone_ || answer_complete_) EndAnswer();
}

void HttpConnection::WriteRest() {
  writing_ = true;
  if (in_flight_sent_ == 0) {
    in_flight_until_ = MonotonicNow() + kMaxWriteTimeouts * shared_->options.write_timeout;
  }
  ArmWriteDeadline();
  kernel_holds_bytes_ = KernelHolds(socket_.native_handle());
  socket_.async_write_some(asio::buffer(in_flight_) + in_flight_sent_,
                           InTurn([this](const error_code& error, size_t sent) {
                             writing_ = false;
                             in_flight_sent_ += sent;
                             if (!error && !client_gone_ && in_flight_sent_ < in_flight_.size()) {
                               CountBuffered();
                               return WriteRest();  // it reads: its time begins anew
                             }
                             DisarmDeadline();
                             ClearInFlight();
                             if (error) OnClientGone();
                             WriteMore();
                           }));
}

void HttpConnection::WriteMoreLater() {
  asio::post(socket_.get_executor(), InTurn([this] { WriteMore(); }));
}

void HttpConnection::ArmWriteDeadline() {
  ArmDeadline(std::min(shared_->options.write_timeout, in_flight_until_ - MonotonicNow()));
}

bool HttpConnection::StillReads() {
  // The kernel takes more only once much of what it holds is gone, so a slow client may have read
  // all the time without a write.
  const int holds = KernelHolds(socket_.native_handle());
  if (holds >= kernel_holds_bytes_ || MonotonicNow() >= in_flight_until_) return false;
  kernel_holds_bytes_ = holds;
  return true;
}

void HttpConnection::EvictIfSlow() {
  // What is in flight has deadlines of its own; slow is who lets more and more wait behind it.
  const size_t waiting = outbox_.size() - std::min(outbox_.size(), uncounted_bytes_);
  if (client_gone_ || !streaming_ ||
      waiting <= static_cast<size_t>(shared_->options.max_stream_buffer_bytes)) {
    return;
  }
  Evict();
}

void HttpConnection::Evict() {
  shared_->context->metrics().slow_client_evictions(Front::kHttp)->Increment();
  // Reset rather than closed: what the kernel still holds for this client is freed at once.
  error_code ignored;
  socket_.set_option(asio::socket_base::linger(true, 0), ignored);
  OnClientGone();
}

void HttpConnection::CountBuffered() {
  if (!counted_as_stream_) return;
  const int64_t waiting =
      static_cast<int64_t>(outbox_.size() + in_flight_.size() - in_flight_sent_);
  if (waiting == buffered_counted_) return;
  shared_->context->metrics()
      .buffered_bytes(Front::kHttp)
      ->Add(static_cast<double>(waiting - buffered_counted_));
  buffered_counted_ = waiting;
}

void HttpConnection::DropOutbox() {
  ClearOutbox();
  if (!writing_) ClearInFlight();
  if (!counted_as_stream_) return;
  shared_->context->metrics()
      .buffered_bytes(Front::kHttp)
      ->Add(-static_cast<double>(buffered_counted_));
  shared_->context->metrics().streams(Front::kHttp)->Add(-1);
  buffered_counted_ = 0;
  counted_as_stream_ = false;
}

// Assigning an empty string would keep the memory.
void HttpConnection::ClearOutbox() {
  outbox_.clear();
  uncounted_bytes_ = 0;
  if (outbox_.capacity() > kMaxIdleBufferBytes) outbox_.shrink_to_fit();
}

void HttpConnection::ClearInFlight() {
  in_flight_.clear();
  in_flight_sent_ = 0;
  if (in_flight_.capacity() > kMaxIdleBufferBytes) in_flight_.shrink_to_fit();
}

}  // namespace sluice::router
