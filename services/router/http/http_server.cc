#include "services/router/http/http_server.h"

#include <sys/socket.h>

#include <atomic>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/post.hpp>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/host_port.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "services/router/http/http_connection.h"
#include "services/router/http/loop_tasks.h"
#include "services/router/http/openai_format.h"
#include "services/router/http/response_head.h"

namespace sluice::router {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;

constexpr absl::Duration kAcceptRetry = absl::Milliseconds(100);

// From this many connections on, each new one closes the oldest that has no request: whoever holds
// connections without using them cannot keep the others out.
int ShedIdleFrom(int max_connections) { return max_connections - max_connections / 8; }

// The answer to a connection over the cap, of which no request is read.
std::string TooManyConnections(const HttpOptions& options) {
  ApiError error;
  error.kind = ErrorKind::kNoCapacity;
  error.message = "too many connections";
  const std::string body = FormatError(error);
  ResponseHead head;
  head.status = error.row().http_status;
  head.content_type = kJsonContentType;
  head.cors_allow_origin = options.cors_allow_origin;
  head.headers = RetryHeaders(error);
  head.close = true;
  return absl::StrCat(FormatHead(head), "Content-Length: ", body.size(), "\r\n\r\n", body);
}

// One event loop with its thread and the connections that live on it.
struct IoThread {
  asio::io_context loop{1};
  CallTasks tasks{&loop};
  asio::executor_work_guard<asio::io_context::executor_type> keep_running{loop.get_executor()};
  std::vector<std::weak_ptr<HttpConnection>> connections;  // its thread only
  size_t prune_at = 64;
  std::thread thread;

  void Adopt(tcp::socket socket, HttpServerShared* shared) {
    // Forget ended ones whenever the list has doubled.
    if (connections.size() >= prune_at) {
      std::erase_if(connections, [](const auto& weak) { return weak.expired(); });
      prune_at = std::max<size_t>(64, connections.size() * 2);
    }
    auto connection = std::make_shared<HttpConnection>(std::move(socket), shared, &tasks);
    connections.push_back(connection);
    connection->Start();
  }

  // Closes the connection that came first among those that wait for a request.
  void CloseOneIdle() {
    for (const auto& weak : connections) {
      const std::shared_ptr<HttpConnection> connection = weak.lock();
      if (connection != nullptr && connection->CloseIfIdle()) return;
    }
  }
};

class HttpServerImpl : public HttpServer {
 public:
  HttpServerImpl(const HttpOptions& options, ApiContext* context) {
    shared_.options = options;
    shared_.context = context;
    for (int i = 0; i < options.num_threads; ++i) threads_.push_back(std::make_unique<IoThread>());
    acceptor_ = std::make_unique<tcp::acceptor>(threads_.front()->loop);
    accept_retry_ = std::make_unique<asio::steady_timer>(threads_.front()->loop);
  }

  ~HttpServerImpl() override {
    StopAccepting();
    ForEachConnection([](HttpConnection* connection) { connection->Close(); });
    // Tasks on the prepare pool post to our loops; they are short.
    shared_.prepares.AwaitZero(absl::InfiniteDuration());
    for (const auto& thread : threads_) {
      thread->keep_running.reset();
      if (thread->thread.joinable()) thread->thread.join();
    }
    // Whoever was just writing a token may hold the last reference to a connection.
    shared_.connections.AwaitZero(absl::InfiniteDuration());
  }

  absl::Status Listen() {
    const HttpOptions& options = shared_.options;
    boost::system::error_code error;
    const std::string host = options.host == "localhost" ? "127.0.0.1" : options.host;
    const asio::ip::address address = asio::ip::make_address(host, error);
    const std::string where =
        absl::StrCat("http address ", JoinHostPort(options.host, options.port));
    if (error) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": '", options.host, "' is not an IP address (0.0.0.0 or :: for all of them)"));
    }
    const tcp::endpoint endpoint(address, static_cast<uint16_t>(options.port));
    acceptor_->open(endpoint.protocol(), error);
    if (!error) acceptor_->set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_->bind(endpoint, error);
    if (!error) acceptor_->listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat(where, " (http_host, http_port): ", error.message(),
                       error == asio::error::address_in_use ? "; port 0 takes a free one" : ""));
    }
    port_ = acceptor_->local_endpoint(error).port();
    return absl::OkStatus();
  }

  void Run() {
    Accept();
    for (const auto& thread : threads_) {
      thread->thread = std::thread([loop = &thread->loop] { loop->run(); });
      pthread_setname_np(thread->thread.native_handle(), "router-http");
    }
  }

  int port() const override { return port_; }

  void Drain(absl::Duration timeout) override {
    StopAccepting();
    ForEachConnection([](HttpConnection* connection) { connection->Drain(); });
    if (shared_.connections.AwaitZero(timeout)) return;
    SLUICE_LOG(Warning) << "drain: " << shared_.connections.Get()
                        << " HTTP connections are cut off after " << timeout;
    ForEachConnection([](HttpConnection* connection) { connection->Close(); });
  }

 private:
  // The first thread only, like all of the acceptor.
  void Accept() {
    IoThread* const target = threads_[next_thread_++ % threads_.size()].get();
    acceptor_->async_accept(
        target->loop, [this, target](const boost::system::error_code& error, tcp::socket socket) {
          if (error == asio::error::operation_aborted || !acceptor_->is_open()) return;
          if (error) return AcceptLater(error);
          Admit(target, std::move(socket));
          Accept();
        });
  }

  // Out of file descriptors, most likely: waiting is all that helps.
  void AcceptLater(const boost::system::error_code& error) {
    SLUICE_LOG(Warning) << "http accept: " << error.message();
    accept_retry_->expires_after(absl::ToChronoMilliseconds(kAcceptRetry));
    accept_retry_->async_wait([this](const boost::system::error_code& cancelled) {
      if (!cancelled && acceptor_->is_open()) Accept();
    });
  }

  void Admit(IoThread* target, tcp::socket socket) {
    if (shared_.connections.Get() >= shared_.options.max_connections) {
      // Best effort: one send that does not wait.
      const std::string answer = TooManyConnections(shared_.options);
      send(socket.native_handle(), answer.data(), answer.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      shared_.context->metrics().CountHttpRequest("other", 503);
      return;
    }
    if (shared_.connections.Get() >= ShedIdleFrom(shared_.options.max_connections)) {
      // At once if the loop is ours: the closed one is counted off before the next is accepted.
      asio::dispatch(target->loop, [target] { target->CloseOneIdle(); });
    }
    shared_.connections.Add(1);  // the connection takes it back
    asio::post(target->loop,
               [this, target, socket = std::make_shared<tcp::socket>(std::move(socket))] {
                 target->Adopt(std::move(*socket), &shared_);
               });
  }

  void StopAccepting() {
    asio::post(threads_.front()->loop, [this] {
      boost::system::error_code ignored;
      acceptor_->close(ignored);
      accept_retry_->cancel();
    });
  }

  // Runs `action` on each connection's own thread, after what was accepted before.
  void ForEachConnection(void (*action)(HttpConnection*)) {
    asio::post(threads_.front()->loop, [this, action] {
      for (const auto& thread : threads_) {
        asio::post(thread->loop, [thread = thread.get(), action] {
          const auto connections = thread->connections;
          for (const auto& weak : connections) {
            if (const std::shared_ptr<HttpConnection> connection = weak.lock()) {
              action(connection.get());
            }
          }
        });
      }
    });
  }

  HttpServerShared shared_;  // outlives the loops and so the connections
  int port_ = 0;
  std::vector<std::unique_ptr<IoThread>> threads_;
  // The first thread only, once it runs.
  std::unique_ptr<tcp::acceptor> acceptor_;
  std::unique_ptr<asio::steady_timer> accept_retry_;
  size_t next_thread_ = 0;
};

absl::Status CheckOptions(const HttpOptions& options) {
  if (options.num_threads < 1) return absl::InvalidArgumentError("http: num_threads must be >= 1");
  if (options.port < 0 || options.port > 65535) {
    return absl::InvalidArgumentError("http: port must be in 0..65535");
  }
  if (options.max_connections < 1 || options.max_header_bytes < 1024 ||
      options.max_body_bytes < 1024 || options.max_stream_buffer_bytes < 1024) {
    return absl::InvalidArgumentError(
        "http: max_connections must be >= 1 and each bound in bytes >= 1024");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> StartHttpServer(const HttpOptions& options,
                                                            ApiContext* context) {
  SLUICE_RETURN_IF_ERROR(CheckOptions(options));
  auto server = std::make_unique<HttpServerImpl>(options, context);
  SLUICE_RETURN_IF_ERROR(server->Listen());
  server->Run();
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace sluice::router
