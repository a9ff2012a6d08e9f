// One HTTP/1.1 connection: reads requests one after another under deadlines, writes their answers,
// and notices when the client goes away or stops reading. Heavy header (Asio, Beast), for
// http_connection.cc, http_connection_reading.cc and http_server.cc only.
//
// Everything in it happens in turns, one at a time, each with turn_mu_ held. Most are of its I/O
// thread; whoever brings a token on a quiet router takes the turn to write it (CallExecutor).
//
// Invariants:
//  1. At most one request is being answered; bytes of later ones wait, bounded, in buffer_.
//  2. While an answer is pending or streaming, a read is outstanding that finds the client's end,
//     or, once buffer_ is full, a look at the socket is due.
//  3. Every operation has a deadline, except the wait for an answer: the request has its own.
//  4. What is to be sent waits in outbox_ while a call handles its events, so that all of it leaves
//     in one write.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "services/router/api/activity_count.h"
#include "services/router/api/api_context.h"
#include "services/router/api/generation_call.h"
#include "services/router/http/http_exchange.h"
#include "services/router/http/http_server.h"
#include "services/router/http/loop_tasks.h"

namespace sluice::router {

// What connections share with their server, which outlives them.
struct HttpServerShared {
  HttpOptions options;
  ApiContext* context = nullptr;
  ActivityCount connections;
  ActivityCount prepares;  // tasks of ours on the prepare pool
};

class HttpConnection;

// A call on its I/O thread has events to handle.
struct CallTask {
  std::weak_ptr<HttpConnection> connection;
  std::weak_ptr<GenerationCall> call;
  void operator()() const;
};
using CallTasks = LoopTasks<CallTask>;

class HttpConnection : public HttpExchange,
                       public CallExecutor,
                       public std::enable_shared_from_this<HttpConnection> {
 public:
  // `tasks` runs on the connection's I/O thread; it and the socket's event loop outlive
  // `shared->connections`, in which the connection is counted already.
  HttpConnection(boost::asio::ip::tcp::socket socket, HttpServerShared* shared, CallTasks* tasks);
  ~HttpConnection() override;

  // Each takes a turn.
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
  void SendOpeningEvent(absl::string_view data) override;
  void EndStream(bool close) override;
  void SetPending(std::unique_ptr<PendingAnswer> pending) override;
  void Prepare(int64_t input_bytes, std::function<std::function<void()>()> work) override;
  std::weak_ptr<CallExecutor> Executor() override { return weak_from_this(); }

  // CallExecutor
  void Post(std::weak_ptr<GenerationCall> call) override;
  bool TryRun(GenerationCall* call) override;

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  friend struct CallTask;
  enum class Phase { kIdle, kReading, kAnswering, kClosing };
  // Takes the connection off the server's count when all of the connection is gone.
  struct Counted {
    HttpServerShared* const shared;
    ~Counted() { shared->connections.Add(-1); }
  };

  // The handler of an asynchronous operation: keeps the connection and runs `handle` in a turn.
  template <typename Handle>
  auto InTurn(Handle handle) {
    return [self = shared_from_this(), handle = std::move(handle)](auto&&... results) {
      absl::MutexLock turn(&self->turn_mu_);
      handle(std::forward<decltype(results)>(results)...);
    };
  }
  // What the call sends leaves in one write.
  void RunCorked(GenerationCall* call);

  // The life of a connection; each step starts one asynchronous operation and the next follows from
  // its completion. Callbacks rather than coroutines: GCC 12 lays out some coroutine frames
  // wrongly.
  //   ReadNext -> ReadHeader -> ReadBody -> Answer -> WriteMore ... -> EndAnswer
  // and from there back to ReadNext, or to Finish.
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
  // All but the body.
  void TakeHead();
  void TakeRequest();
  void RefuseUnread(ErrorKind kind, absl::string_view message);
  // Maps a parser's error to an answer, or to silence when the client just left.
  void RefuseUnreadable(const boost::system::error_code& error);
  std::string Head(int status, absl::string_view content_type,
                   const std::vector<HttpHeader>& headers) const;
  // What the kernel did not take at once, piece by piece as the client reads.
  void WriteRest();
  void ArmWriteDeadline();
  // The client has taken something since this was asked last, and may take its time.
  bool StillReads();
  void ClearOutbox();
  void ClearInFlight();
  void CountBuffered();
  void DropOutbox();
  void AppendEvent(absl::string_view data);
  void EvictIfSlow();
  void Evict();
  void CompleteAnswer();
  // Whether anybody still wants the answer. Any thread; takes a turn.
  static bool IsAwaited(const std::weak_ptr<HttpConnection>& connection);
  void CountAnswer(int status);
  void Watch();
  void LookLater();
  void Look();
  void OnClientGone();
  void ArmDeadline(absl::Duration timeout);
  void DisarmDeadline();
  void AwaitDeadlineTimer();
  void OnDeadline();
  void CloseSocket();
  // WriteMore, but not from inside a caller that it may destroy.
  void WriteMoreLater();

  const Counted counted_;  // first: destroyed last
  HttpServerShared* const shared_;
  CallTasks* const tasks_;
  absl::Mutex turn_mu_;

  // In turns only.
  boost::asio::ip::tcp::socket socket_;
  boost::beast::flat_buffer buffer_;  // read ahead; bounded
  // Setting and lifting a deadline is much more frequent than missing one, so the timer is left
  // alone until it fires, and then looks at deadline_.
  boost::asio::steady_timer deadline_timer_;
  absl::Time timer_fires_at_ = absl::InfiniteFuture();  // MonotonicNow() scale; never: not waiting
  absl::Time deadline_ = absl::InfiniteFuture();
  int deadline_misses_ = 0;  // more than one: a read went on nevertheless

  // Most connections never need it.
  std::optional<boost::asio::steady_timer> look_timer_;

  Phase phase_ = Phase::kIdle;
  bool draining_ = false;
  bool keep_alive_ = false;
  bool watching_ = false;  // a read is outstanding, for the client's end or its next request
  bool writing_ = false;   // in_flight_ is being written
  bool corked_ = false;    // a call handles its events
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
  std::string outbox_;
  size_t uncounted_bytes_ = 0;    // of outbox_: they say nothing about the client's reading
  std::string in_flight_;         // what the kernel did not take at once
  absl::Time in_flight_until_;    // then the client is closed
  size_t in_flight_sent_ = 0;     // of in_flight_
  int kernel_holds_bytes_ = 0;    // for the client, when the deadline of the write was set
  int64_t buffered_counted_ = 0;  // bytes of ours in the metric
  int64_t discarded_bytes_ = 0;
  bool counted_as_stream_ = false;
};

}  // namespace sluice::router
