#include "services/router/http/http_connection.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "services/router/http/http_routes.h"
#include "services/router/http/response_head.h"
#include "services/router/http/silent_client.h"

namespace sluice::router {
namespace {

namespace asio = boost::asio;

using boost::system::error_code;

constexpr size_t kReadAheadBytes = 64 * 1024;
constexpr size_t kReadChunkBytes = 16 * 1024;
// How often it is looked after a client that has sent as much as is read ahead.
constexpr auto kLookEvery = std::chrono::milliseconds(500);
constexpr absl::Duration kLingerTimeout = absl::Seconds(2);
// A read that a deadline did not end is tried again so often, in such steps.
constexpr int kMaxReadCancels = 10;
constexpr absl::Duration kCancelAgainAfter = absl::Milliseconds(100);
// Events that carry prompts back may wait up to this many times max_stream_buffer_bytes uncounted.
constexpr size_t kUncountedBuffers = 16;
constexpr int64_t kLingerBytes = 32 * 1024 * 1024;

}  // namespace

HttpConnection::HttpConnection(asio::ip::tcp::socket socket, HttpServerShared* shared,
                               CallTasks* tasks)
    : counted_{shared},
      shared_(shared),
      tasks_(tasks),
      socket_(std::move(socket)),
      buffer_(kReadAheadBytes + shared->options.max_header_bytes),
      deadline_timer_(socket_.get_executor()) {
  shared_->context->metrics().http_connections()->Add(1);
}

HttpConnection::~HttpConnection() {
  DropOutbox();
  shared_->context->metrics().http_connections()->Add(-1);
}

void HttpConnection::Start() {
  absl::MutexLock turn(&turn_mu_);
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.non_blocking(true, ignored);  // write_some must not wait
  BreakWhenClientIsSilent(socket_.native_handle());
  if (shared_->options.socket_send_buffer_bytes > 0) {
    socket_.set_option(
        asio::socket_base::send_buffer_size(shared_->options.socket_send_buffer_bytes), ignored);
  }
  ReadNext();
}

void HttpConnection::Drain() {
  absl::MutexLock turn(&turn_mu_);
  draining_ = true;
  if (phase_ == Phase::kIdle) CloseSocket();
}

void HttpConnection::Close() {
  absl::MutexLock turn(&turn_mu_);
  OnClientGone();
}

bool HttpConnection::CloseIfIdle() {
  absl::MutexLock turn(&turn_mu_);
  if (phase_ != Phase::kIdle || !socket_.is_open()) return false;
  CloseSocket();
  return true;
}

// ---- Answering ----

std::string HttpConnection::Head(int status, absl::string_view content_type,
                                 const std::vector<HttpHeader>& headers) const {
  ResponseHead head;
  head.status = status;
  head.content_type = content_type;
  head.request_id = request_.request_id;
  head.cors_allow_origin = shared_->options.cors_allow_origin;
  head.headers = headers;
  head.close = !keep_alive_ || draining_;
  head.http_1_0 = http_1_0_;
  return FormatHead(head);
}

void HttpConnection::Respond(int status, absl::string_view content_type, std::string body,
                             std::vector<HttpHeader> headers) {
  if (client_gone_ || answer_complete_) return;
  std::string answer = Head(status, content_type, headers);
  if (status != 204) absl::StrAppend(&answer, "Content-Length: ", body.size(), "\r\n");
  answer += "\r\n";
  if (!head_request_) answer += body;
  CountAnswer(status);  // first: who has the answer may look at the metrics
  outbox_ += answer;
  CompleteAnswer();
}

void HttpConnection::StartStream() {
  if (client_gone_) return;
  if (http_1_0_) keep_alive_ = false;  // no chunks: the end of the connection ends the stream
  std::vector<HttpHeader> headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  if (!http_1_0_) headers.push_back({"Transfer-Encoding", "chunked"});
  streaming_ = counted_as_stream_ = true;
  shared_->context->metrics().streams(Front::kHttp)->Add(1);
  CountAnswer(200);
  absl::StrAppend(&outbox_, Head(200, "text/event-stream; charset=utf-8", headers), "\r\n");
  WriteMore();
}

void HttpConnection::SendEvent(absl::string_view data) {
  if (client_gone_) return;
  // One event of any size may wait behind the write under way.
  const bool waits_alone = outbox_.empty();
  AppendEvent(data);
  if (waits_alone) uncounted_bytes_ = outbox_.size();
  WriteMore();
}

void HttpConnection::SendOpeningEvent(absl::string_view data) {
  if (client_gone_) return;
  const size_t before = outbox_.size();
  AppendEvent(data);
  const size_t added = outbox_.size() - before;
  const auto limit = static_cast<size_t>(shared_->options.max_stream_buffer_bytes);
  if (before == 0 || uncounted_bytes_ + added <= kUncountedBuffers * limit) {
    uncounted_bytes_ += added;
  }
  WriteMore();
}

void HttpConnection::AppendEvent(absl::string_view data) {
  constexpr size_t kFrameBytes = sizeof("data: \n\n") - 1;
  if (http_1_0_) {
    absl::StrAppend(&outbox_, "data: ", data, "\n\n");
  } else {
    absl::StrAppend(&outbox_, absl::Hex(data.size() + kFrameBytes), "\r\ndata: ", data, "\n\n\r\n");
  }
}

void HttpConnection::EndStream(bool close) {
  if (client_gone_) return;
  if (close) keep_alive_ = false;
  if (!http_1_0_) outbox_ += "0\r\n\r\n";
  CompleteAnswer();
}

void HttpConnection::CompleteAnswer() {
  answer_complete_ = true;
  if (!corked_) WriteMoreLater();
}

void HttpConnection::CountAnswer(int status) {
  shared_->context->metrics().CountHttpRequest(route_, status);
}

void HttpConnection::SetPending(std::unique_ptr<PendingAnswer> pending) {
  pending_ = std::move(pending);
}

void HttpConnection::RunCorked(GenerationCall* call) {
  corked_ = true;
  call->HandleEvents();
  corked_ = false;
  WriteMore();
}

void HttpConnection::Post(std::weak_ptr<GenerationCall> call) {
  tasks_->Post({weak_from_this(), std::move(call)});
}

bool HttpConnection::TryRun(GenerationCall* call) {
  if (!turn_mu_.TryLock()) return false;
  RunCorked(call);
  turn_mu_.Unlock();
  return true;
}

void CallTask::operator()() const {
  const std::shared_ptr<HttpConnection> to = connection.lock();
  const std::shared_ptr<GenerationCall> alive = call.lock();
  if (to == nullptr || alive == nullptr) return;
  absl::MutexLock turn(&to->turn_mu_);
  to->RunCorked(alive.get());
}

bool HttpConnection::IsAwaited(const std::weak_ptr<HttpConnection>& connection) {
  const std::shared_ptr<HttpConnection> self = connection.lock();
  if (self == nullptr) return false;
  absl::MutexLock turn(&self->turn_mu_);
  return !self->client_gone_;
}

void HttpConnection::Prepare(int64_t input_bytes, std::function<std::function<void()>()> work) {
  if (input_bytes <= shared_->context->options().inline_prepare_bytes) {
    work()();
    return;
  }
  shared_->prepares.Add(1);
  const bool posted = shared_->context->prepare_pool().Post(
      [shared = shared_, weak = weak_from_this(), executor = socket_.get_executor(),
       work = std::move(work)] {
        if (IsAwaited(weak)) {
          asio::post(executor, [weak, finish = work()] {
            const std::shared_ptr<HttpConnection> self = weak.lock();
            if (self == nullptr) return;
            absl::MutexLock turn(&self->turn_mu_);
            if (!self->client_gone_) finish();
          });
        }
        shared->prepares.Add(-1);
      },
      input_bytes);
  if (!posted) {
    shared_->prepares.Add(-1);
    RespondError(this, MakeError(ErrorKind::kQueueFull, "too many long prompts are waiting"));
  }
}

// ---- Noticing the client's end ----

void HttpConnection::Answer() {
  DisarmDeadline();
  TakeRequest();
  phase_ = Phase::kAnswering;
  answering_ = shared_from_this();
  HandleHttpRequest(shared_->options, shared_->context, this);
  if (!answer_complete_) Watch();
}

void HttpConnection::EndAnswer() {
  const bool last = !keep_alive_ || draining_ || client_gone_;
  if (watching_ && (last || buffer_.size() > 0)) {
    // Its read must end before others use the same buffer; then we come here again.
    error_code ignored;
    socket_.cancel(ignored);
    return;
  }
  DropOutbox();
  pending_.reset();
  const std::shared_ptr<HttpConnection> self = std::move(answering_);  // until we return
  if (last) return Finish();
  ReadNext();
}

// The read that waits for the client: for its end while it is answered, for its next request after
// that.
void HttpConnection::Watch() {
  if (client_gone_) return;
  if (buffer_.size() >= kReadAheadBytes) return LookLater();
  watching_ = true;
  socket_.async_read_some(
      buffer_.prepare(std::min(kReadChunkBytes, kReadAheadBytes - buffer_.size())),
      InTurn([this](const error_code& error, size_t bytes) {
        watching_ = false;
        buffer_.commit(bytes);
        if (phase_ == Phase::kIdle) return error || draining_ ? Finish() : ReadHeader();
        if (error && error != asio::error::operation_aborted) OnClientGone();
        if (!error && !answer_complete_ && !client_gone_) return Watch();
        WriteMore();  // the answer may have waited for the end of the watch
      }));
}

// A client that has sent that much ahead is not read any more, only looked after: it may be honest,
// and wait for this answer with its next request half sent.
void HttpConnection::LookLater() {
  if (!look_timer_.has_value()) look_timer_.emplace(socket_.get_executor());
  look_timer_->expires_after(kLookEvery);
  look_timer_->async_wait([weak = weak_from_this()](const error_code& error) {
    if (error) return;  // set anew, or the connection is over
    const std::shared_ptr<HttpConnection> self = weak.lock();
    if (self == nullptr) return;
    absl::MutexLock turn(&self->turn_mu_);
    self->Look();
  });
}

void HttpConnection::Look() {
  if (phase_ != Phase::kAnswering || answer_complete_ || client_gone_ || watching_) return;
  if (HasLeft(socket_.native_handle())) return OnClientGone();
  LookLater();
}

void HttpConnection::OnClientGone() {
  if (client_gone_) return;
  client_gone_ = true;
  keep_alive_ = false;
  if (phase_ == Phase::kAnswering && !answer_complete_) {
    if (!streaming_) CountAnswer(499);
    shared_->context->metrics().CountDisconnect(streaming_ ? DisconnectPhase::kStreaming
                                                           : DisconnectPhase::kBeforeFirstToken);
  }
  if (pending_ != nullptr) pending_->OnClientGone();
  DropOutbox();
  CloseSocket();  // a write to a client that does not read would wait for its deadline
  WriteMoreLater();
}

void HttpConnection::Finish() {
  phase_ = Phase::kClosing;
  parser_.reset();
  if (client_gone_ || !socket_.is_open()) {
    CloseSocket();
    return;
  }
  // Closing with unread input makes the kernel send a reset, which can overtake our answer.
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  ArmDeadline(kLingerTimeout);
  DiscardInput();
}

void HttpConnection::DiscardInput() {
  buffer_.clear();
  socket_.async_read_some(buffer_.prepare(kReadChunkBytes),
                          InTurn([this](const error_code& error, size_t bytes) {
                            discarded_bytes_ += static_cast<int64_t>(bytes);
                            if (error || discarded_bytes_ > kLingerBytes) return CloseSocket();
                            DiscardInput();
                          }));
}

void HttpConnection::ArmDeadline(absl::Duration timeout) {
  deadline_misses_ = 0;
  deadline_ = MonotonicNow() + std::min(timeout, absl::Hours(24));
  if (deadline_ < timer_fires_at_) AwaitDeadlineTimer();
}

void HttpConnection::DisarmDeadline() { deadline_ = absl::InfiniteFuture(); }

void HttpConnection::AwaitDeadlineTimer() {
  timer_fires_at_ = deadline_;
  deadline_timer_.expires_after(
      absl::ToChronoNanoseconds(std::max(deadline_ - MonotonicNow(), absl::ZeroDuration())));
  deadline_timer_.async_wait([weak = weak_from_this()](const error_code& error) {
    if (error) return;  // set anew, or the connection is over
    const std::shared_ptr<HttpConnection> self = weak.lock();
    if (self == nullptr) return;
    absl::MutexLock turn(&self->turn_mu_);
    self->OnDeadline();
  });
}

void HttpConnection::OnDeadline() {
  // A wait that was superseded may already have been on its way.
  if (MonotonicNow() < timer_fires_at_) return;
  timer_fires_at_ = absl::InfiniteFuture();
  if (deadline_ == absl::InfiniteFuture()) return;
  if (MonotonicNow() < deadline_) return AwaitDeadlineTimer();
  if (writing_) {
    if (StillReads()) return ArmWriteDeadline();
    if (streaming_) return Evict();
  }
  ++deadline_misses_;
  if (phase_ == Phase::kReading && deadline_misses_ <= kMaxReadCancels) {
    // The read ends and the request is refused; the socket can still be written. Unless bytes were
    // there: then no read is pending that could be cancelled, and the next one would have no end.
    error_code ignored;
    socket_.cancel(ignored);
    deadline_ = MonotonicNow() + kCancelAgainAfter;
    return AwaitDeadlineTimer();
  }
  CloseSocket();
}

void HttpConnection::CloseSocket() {
  error_code ignored;
  socket_.close(ignored);
  DisarmDeadline();
  deadline_timer_.cancel();
  if (look_timer_.has_value()) look_timer_->cancel();
  timer_fires_at_ = absl::InfiniteFuture();
}

}  // namespace sluice::router
