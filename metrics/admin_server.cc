// Boost.Beast stays in this file.
#include "metrics/admin_server.h"

#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Response = http::response<http::string_body>;

constexpr int kMaxConnections = 64;
constexpr size_t kMaxHeaderBytes = 16 << 10;
constexpr std::chrono::seconds kDeadline{5};

Response MakeResponse(http::status status, std::string body,
                      const char* content_type = "text/plain; charset=utf-8") {
  Response response(status, 11);
  response.set(http::field::content_type, content_type);
  response.set(http::field::cache_control, "no-store");
  response.body() = std::move(body);
  return response;
}

class BeastAdminServer final : public AdminServer {
 public:
  BeastAdminServer(MetricsRegistry* registry, AdminProbes probes)
      : registry_(registry), probes_(std::move(probes)), acceptor_(io_) {}

  ~BeastAdminServer() override {
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen(const AdminOptions& options) {
    error_code error;
    const std::string host = options.host == "localhost" ? "127.0.0.1" : options.host;
    const asio::ip::address address = asio::ip::make_address(host, error);
    if (error || options.port < 0 || options.port > 65535) {
      return absl::InvalidArgumentError(absl::StrCat(
          "admin server: '", options.host, ":", options.port, "' is not an IP address and port"));
    }
    const tcp::endpoint endpoint(address, static_cast<uint16_t>(options.port));
    acceptor_.open(endpoint.protocol(), error);
    // On Linux this only allows a port whose last connections are still in TIME_WAIT.
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(kMaxConnections, error);
    if (!error) port_ = acceptor_.local_endpoint(error).port();
    if (error) {
      return absl::UnavailableError(absl::StrCat("admin server: cannot listen on ", options.host,
                                                 ":", options.port, ": ", error.message()));
    }
    asio::co_spawn(io_, Accept(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
    return absl::OkStatus();
  }

  int port() const override { return port_; }

 private:
  asio::awaitable<void> Accept() {
    asio::steady_timer pause(io_);
    for (;;) {
      error_code error;
      tcp::socket socket =
          co_await acceptor_.async_accept(asio::redirect_error(asio::use_awaitable, error));
      if (error) {  // out of descriptors, say: it passes, but must not spin meanwhile
        pause.expires_after(std::chrono::milliseconds(100));
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
        continue;
      }
      if (num_connections_ >= kMaxConnections) continue;  // closes it
      asio::co_spawn(io_, Serve(beast::tcp_stream(std::move(socket))), asio::detached);
    }
  }

  // One connection, from its first request to its end.
  asio::awaitable<void> Serve(beast::tcp_stream stream) {
    struct CountGuard {
      int& count;
      explicit CountGuard(int& c) : count(c) { ++count; }
      ~CountGuard() { --count; }
    } const guard(num_connections_);

    beast::flat_buffer buffer(kMaxHeaderBytes);
    for (bool keep_alive = true; keep_alive;) {
      http::request_parser<http::empty_body> parser;
      parser.header_limit(kMaxHeaderBytes);
      error_code error;
      stream.expires_after(kDeadline);
      co_await http::async_read_header(stream, buffer, parser,
                                       asio::redirect_error(asio::use_awaitable, error));
      Response response;
      if (!error) {
        response = Answer(parser);
        keep_alive = parser.get().keep_alive() && !HasBody(parser);
      } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
        response = MakeResponse(http::status::request_header_fields_too_large,
                                "request headers are larger than 16 KiB\n");
        keep_alive = false;
      } else if (error.category() == make_error_code(http::error::bad_method).category() &&
                 error != http::error::end_of_stream && error != http::error::partial_message) {
        response = MakeResponse(http::status::bad_request,
                                absl::StrCat("not an HTTP request: ", error.message(), "\n"));
        keep_alive = false;
      } else {
        break;  // closed by the client, or its time is up
      }

      const bool head_only = !error && parser.get().method() == http::verb::head;
      response.keep_alive(keep_alive);
      response.prepare_payload();
      if (head_only) response.body().clear();  // Content-Length stays that of the body
      http::response_serializer<http::string_body> serializer(response);
      stream.expires_after(kDeadline);
      if (head_only) {
        co_await http::async_write_header(stream, serializer,
                                          asio::redirect_error(asio::use_awaitable, error));
      } else {
        co_await http::async_write(stream, serializer,
                                   asio::redirect_error(asio::use_awaitable, error));
      }
      if (error) break;
    }
    co_await Linger(stream);
  }

  // Closing with unread bytes resets the connection, and the client may never see our answer.
  static asio::awaitable<void> Linger(beast::tcp_stream& stream) {
    error_code error;
    stream.socket().shutdown(tcp::socket::shutdown_send, error);
    stream.expires_after(std::chrono::seconds(1));
    std::array<char, 4096> unread;
    for (int reads = 0; !error && reads < 64; ++reads) {
      co_await stream.async_read_some(asio::buffer(unread),
                                      asio::redirect_error(asio::use_awaitable, error));
    }
  }

  static bool HasBody(const http::request_parser<http::empty_body>& parser) {
    return parser.chunked() || parser.content_length().value_or(0) > 0;
  }

  Response Answer(const http::request_parser<http::empty_body>& parser) {
    const auto& request = parser.get();
    if (request.method() != http::verb::get && request.method() != http::verb::head) {
      Response response = MakeResponse(http::status::method_not_allowed,
                                       "the admin port answers GET and HEAD only\n");
      response.set(http::field::allow, "GET, HEAD");
      return response;
    }
    const beast::string_view target = request.target();
    const beast::string_view path = target.substr(0, target.find('?'));
    if (path == "/livez") return Probe(probes_.live);
    if (path == "/readyz") return Probe(probes_.ready);
    if (path == "/startupz") return Probe(probes_.started);
    if (path == "/metrics") {
      return MakeResponse(http::status::ok, registry_->ExportText(),
                          "text/plain; version=0.0.4; charset=utf-8");
    }
    return MakeResponse(http::status::not_found,
                        "not found; there are /livez, /readyz, /startupz and /metrics\n");
  }

  static Response Probe(const std::function<std::string()>& probe) {
    const std::string reason = probe ? probe() : "";
    return reason.empty()
               ? MakeResponse(http::status::ok, "ok\n")
               : MakeResponse(http::status::service_unavailable, absl::StrCat(reason, "\n"));
  }

  // Constant after construction and Listen.
  MetricsRegistry* const registry_;
  const AdminProbes probes_;
  int port_ = 0;

  // Owned by the server's thread. Connections live in io_ and count themselves: io_ goes first.
  int num_connections_ = 0;
  asio::io_context io_{1};
  tcp::acceptor acceptor_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(const AdminOptions& options,
                                                                MetricsRegistry* registry,
                                                                AdminProbes probes) {
  auto server = std::make_unique<BeastAdminServer>(registry, std::move(probes));
  const absl::Status status = server->Listen(options);
  if (!status.ok()) return status;
  return absl::StatusOr<std::unique_ptr<AdminServer>>(std::move(server));
}

}  // namespace sluice
