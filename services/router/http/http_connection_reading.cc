// The part of a connection that reads: from a request's first byte to a whole request, or to the
// refusal of one that cannot be read.
#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "services/router/api/request_id.h"
#include "services/router/http/http_connection.h"
#include "services/router/http/http_routes.h"

namespace sluice::router {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

using boost::system::error_code;

// "/a/b?c" and "http://host/a/b?c" -> "/a/b".
std::string PathOf(absl::string_view target) {
  if (absl::StartsWithIgnoreCase(target, "http://")) {
    target.remove_prefix(7);
    const size_t slash = target.find('/');
    target = slash == absl::string_view::npos ? absl::string_view("/") : target.substr(slash);
  }
  return std::string(target.substr(0, target.find_first_of("?#")));
}

absl::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

void HttpConnection::ForgetRequest() {
  request_ = HttpRequest();
  route_ = "other";
  head_request_ = http_1_0_ = streaming_ = answer_complete_ = false;
}

void HttpConnection::ReadNext() {
  ForgetRequest();
  if (draining_ || client_gone_) return Finish();
  if (buffer_.size() > 0) return ReadHeader();  // pipelined
  phase_ = Phase::kIdle;
  ArmDeadline(shared_->options.idle_timeout);
  if (!watching_) Watch();
}

void HttpConnection::ReadHeader() {
  phase_ = Phase::kReading;
  keep_alive_ = false;  // until the request says otherwise
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(shared_->options.max_header_bytes));
  parser_->body_limit(static_cast<uint64_t>(shared_->options.max_body_bytes));
  ArmDeadline(shared_->options.header_timeout);
  http::async_read_header(socket_, buffer_, *parser_,
                          InTurn([this](const error_code& error, size_t) {
                            if (error) return RefuseUnreadable(error);
                            ReadBody();
                          }));
}

void HttpConnection::ReadBody() {
  if (parser_->is_done()) return Answer();
  ArmDeadline(shared_->options.body_timeout);
  if (!absl::EqualsIgnoreCase(View(parser_->get()[http::field::expect]), "100-continue")) {
    return ReadRestOfBody();
  }
  static constexpr char kContinue[] = "HTTP/1.1 100 Continue\r\n\r\n";
  asio::async_write(socket_, asio::buffer(kContinue, sizeof(kContinue) - 1),
                    InTurn([this](const error_code& error, size_t) {
                      if (error) return RefuseUnreadable(error);
                      ReadRestOfBody();
                    }));
}

void HttpConnection::ReadRestOfBody() {
  http::async_read(socket_, buffer_, *parser_, InTurn([this](const error_code& error, size_t) {
                     if (error) return RefuseUnreadable(error);
                     Answer();
                   }));
}

void HttpConnection::TakeHead() {
  const auto& message = parser_->get();
  request_.method = std::string(View(message.method_string()));
  request_.path = PathOf(View(message.target()));
  request_.content_type = std::string(View(message[http::field::content_type]));
  request_.has_origin = message.find(http::field::origin) != message.end();
  request_.request_id = RequestIdOr(View(message["x-request-id"]));
  request_.received_at = MonotonicNow();
  head_request_ = message.method() == http::verb::head;
  http_1_0_ = message.version() < 11;
}

void HttpConnection::TakeRequest() {
  TakeHead();
  request_.body = std::move(parser_->get().body());
  keep_alive_ = parser_->get().keep_alive();
  parser_.reset();
}

void HttpConnection::RefuseUnreadable(const error_code& error) {
  if (client_gone_) {
    Finish();
  } else if (deadline_misses_ > 0) {
    RefuseUnread(ErrorKind::kRequestTimeout, "the request did not arrive in time");
  } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    RefuseUnread(
        ErrorKind::kHeadersTooLarge,
        absl::StrCat("headers may have at most ", shared_->options.max_header_bytes, " bytes"));
  } else if (error == http::error::body_limit) {
    RefuseUnread(ErrorKind::kBodyTooLarge, absl::StrCat("the body may have at most ",
                                                        shared_->options.max_body_bytes, " bytes"));
  } else if (error.category() == make_error_code(http::error::bad_method).category() &&
             error != http::error::end_of_stream && error != http::error::partial_message) {
    RefuseUnread(ErrorKind::kInvalidRequest, absl::StrCat("not HTTP/1.1: ", error.message()));
  } else {
    Finish();  // the client left
  }
}

void HttpConnection::RefuseUnread(ErrorKind kind, absl::string_view message) {
  DisarmDeadline();
  phase_ = Phase::kAnswering;
  answering_ = shared_from_this();
  TakeHead();  // as far as it came
  SetRoute(RouteLabel(request_.path));
  RespondError(this, MakeError(kind, message));
}

}  // namespace sluice::router
