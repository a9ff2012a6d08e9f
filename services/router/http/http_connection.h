// One HTTP/1.1 connection: reads requests one after another under deadlines, writes their answers,
// and notices when the client goes away or stops reading. Lives on one I/O thread; heavy header
// (Asio, Beast), for http_connection.cc and http_server.cc only.
//
// Invariants:
//  1. At most one request is being answered; bytes of later ones wait, bounded, in buffer_.
//  2. While an answer is pending or streaming, a read is outstanding that finds the client's end.
//  3. Every operation has a deadline, except the wait for an answer: the request has its own.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "services/router/api/activity_count.h"
#include "services/router/api/api_context.h"
#include "services/router/http/http_exchange.h"
#include "services/router/http/http_server.h"

namespace sluice::router {

// What connections share with their server, which outlives them.
struct HttpServerShared {
  HttpOptions options;
  ApiContext* context = nullptr;
  ActivityCount connections;
  ActivityCount prepares;  // tasks of ours on the prepare pool
};

class HttpConnection : public HttpExchange, public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(boost::asio::ip::tcp::socket socket, HttpServerShared* shared);
  ~HttpConnection() override;

  // The connection's thread, all three.
  void Start();
  // Ends after the answer that is being given, or at once if there is none.
  void Drain();
  void Close();
  // Closes a connection that has no request; false if it has one, or is closed already.
  bool CloseIfIdle();

  HttpRequest& request() override { return request_; }
  void SetRoute(absl::string_view route) override { route_ = std::string(route); }
  void Respond(int status, absl::string_view content_type, std::string body,
               std::vector<HttpHeader> headers) override;
  void StartStream() override;
  void SendEvent(absl::string_view data) override;
  void EndStream(bool close) override;
  void SetPending(std::unique_ptr<PendingAnswer> pending) override;
  void Prepare(int64_t input_bytes, std::function<std::function<void()>()> work) override;
  std::function<void(std::function<void()>)> Executor() override;

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  enum class Phase { kIdle, kReading, kAnswering, kClosing };

  // The life of a connection; each step starts one asynchronous operation and the next follows from
  // its completion. Callbacks rather than coroutines: GCC 12 lays out some coroutine frames
  // wrongly.
  //   ReadNext -> ReadHeader -> ReadBody -> Answer -> WriteMore ... -> EndAnswer -> ReadNext |
  //   Finish
  void ReadNext();
  void ReadHeader();
  void ReadBody();
  void ReadRestOfBody();
  void Answer();
  void WriteMore();
  void EndAnswer();
  // Lets the client read our last words before the socket is gone.
  void Finish();
  void DiscardInput();

  void ForgetRequest();
  void TakeRequest();
  void RefuseUnread(ErrorKind kind, absl::string_view message);
  // Maps a parser's error to an answer, or to silence when the client just left.
  void RefuseUnreadable(const boost::system::error_code& error);
  std::string HeaderBlock(int status, absl::string_view content_type,
                          const std::vector<HttpHeader>& headers) const;
  void Enqueue(std::string bytes);
  void CountWritten();
  void DropOutbox();
  void CompleteAnswer();
  void CountAnswer(int status);
  void WatchForClientGone();
  void OnClientGone();
  void ArmDeadline(absl::Duration timeout);
  void DisarmDeadline();
  void CloseSocket();
  // WriteMore, but not from inside a caller that it may destroy.
  void WriteMoreLater();

  HttpServerShared* const shared_;
  boost::asio::ip::tcp::socket socket_;
  boost::beast::flat_buffer buffer_;  // read ahead; bounded
  boost::asio::steady_timer deadline_;

  Phase phase_ = Phase::kIdle;
  bool draining_ = false;
  bool keep_alive_ = false;
  bool deadline_passed_ = false;
  bool watching_ = false;
  bool writing_ = false;
  bool client_gone_ = false;

  std::optional<Parser> parser_;
  // Set while an answer is due: then perhaps no operation is outstanding that would keep this
  // alive.
  std::shared_ptr<HttpConnection> answering_;
  // The request being answered.
  HttpRequest request_;
  std::string route_ = "other";
  bool head_request_ = false;
  bool http_1_0_ = false;
  bool streaming_ = false;
  bool answer_complete_ = false;
  std::unique_ptr<PendingAnswer> pending_;
  std::deque<std::string> outbox_;
  std::string in_flight_;     // being written
  int64_t outbox_bytes_ = 0;  // with in_flight_
  int64_t discarded_bytes_ = 0;
  bool counted_as_stream_ = false;
};

}  // namespace sluice::router
