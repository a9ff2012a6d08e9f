// Boost.Beast stays in this file.
#include "metrics/admin_server.h"

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <optional>
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

Response ProbeResponse(const std::function<std::string()>& probe) {
  const std::string reason = probe ? probe() : "";
  return reason.empty()
             ? MakeResponse(http::status::ok, "ok\n")
             : MakeResponse(http::status::service_unavailable, absl::StrCat(reason, "\n"));
}

// What the connections share. All of it belongs to the server's thread while that runs.
struct AdminContent {
  MetricsRegistry* registry = nullptr;
  AdminProbes probes;
  AdminPages pages;
  int num_connections = 0;

  Response Answer(const http::request<http::empty_body>& request) const {
    if (request.method() != http::verb::get && request.method() != http::verb::head) {
      Response response = MakeResponse(http::status::method_not_allowed,
                                       "the admin port answers GET and HEAD only\n");
      response.set(http::field::allow, "GET, HEAD");
      return response;
    }
    const beast::string_view target = request.target();
    const std::string path(target.substr(0, target.find('?')));
    if (path == "/livez") return ProbeResponse(probes.live);
    if (path == "/readyz") return ProbeResponse(probes.ready);
    if (path == "/startupz") return ProbeResponse(probes.started);
    if (path == "/metrics") {
      return MakeResponse(http::status::ok, registry->ExportText(),
                          "text/plain; version=0.0.4; charset=utf-8");
    }
    if (const auto page = pages.find(path); page != pages.end()) {
      const absl::StatusOr<std::string> json = page->second();
      return json.ok() ? MakeResponse(http::status::ok, *json + "\n", "application/json")
                       : MakeResponse(http::status::service_unavailable,
                                      absl::StrCat(json.status().message(), "\n"));
    }
    std::string known = "not found; there are /livez, /readyz, /startupz";
    for (const auto& [name, page] : pages) absl::StrAppend(&known, ", ", name);
    return MakeResponse(http::status::not_found, known + " and /metrics\n");
  }
};

// One connection, from its first request to its end. Lives as long as an operation of it is under
// way; each has a deadline.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, AdminContent* content)
      : stream_(std::move(socket)), content_(content) {
    ++content_->num_connections;
  }
  ~Connection() { --content_->num_connections; }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void Read() {
    parser_.emplace();
    parser_->header_limit(kMaxHeaderBytes);
    stream_.expires_after(kDeadline);
    http::async_read_header(
        stream_, buffer_, *parser_,
        [self = shared_from_this()](error_code error, size_t) { self->OnRead(error); });
  }

 private:
  void OnRead(error_code error) {
    if (!error) {
      const bool has_body = parser_->chunked() || parser_->content_length().value_or(0) > 0;
      response_ = content_->Answer(parser_->get());
      keep_alive_ = parser_->get().keep_alive() && !has_body;
      Write(parser_->get().method() == http::verb::head);
    } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      response_ = MakeResponse(http::status::request_header_fields_too_large,
                               "request headers are larger than 16 KiB\n");
      Refuse();
    } else if (error.category() == make_error_code(http::error::bad_method).category() &&
               error != http::error::end_of_stream && error != http::error::partial_message) {
      response_ = MakeResponse(http::status::bad_request,
                               absl::StrCat("not an HTTP request: ", error.message(), "\n"));
      Refuse();
    } else {
      Linger();  // closed by the client, or its time is up
    }
  }

  void Refuse() {
    keep_alive_ = false;
    Write(/*head_only=*/false);
  }

  void Write(bool head_only) {
    response_.keep_alive(keep_alive_);
    response_.prepare_payload();
    if (head_only) response_.body().clear();  // Content-Length stays that of the body
    serializer_.emplace(response_);
    stream_.expires_after(kDeadline);
    auto written = [self = shared_from_this()](error_code error, size_t) {
      if (!error && self->keep_alive_) {
        self->Read();
      } else {
        self->Linger();
      }
    };
    if (head_only) {
      http::async_write_header(stream_, *serializer_, std::move(written));
    } else {
      http::async_write(stream_, *serializer_, std::move(written));
    }
  }

  // Closing with unread bytes resets the connection, and the client may never see our answer.
  void Linger() {
    error_code error;
    stream_.socket().shutdown(tcp::socket::shutdown_send, error);
    stream_.expires_after(std::chrono::seconds(1));
    if (!error) ReadAway(64);
  }
  void ReadAway(int reads_left) {
    if (reads_left == 0) return;
    stream_.async_read_some(asio::buffer(unread_),
                            [self = shared_from_this(), reads_left](error_code error, size_t) {
                              if (!error) self->ReadAway(reads_left - 1);
                            });
  }

  beast::tcp_stream stream_;
  AdminContent* const content_;
  beast::flat_buffer buffer_{kMaxHeaderBytes};
  std::optional<http::request_parser<http::empty_body>> parser_;
  Response response_;
  std::optional<http::response_serializer<http::string_body>> serializer_;
  bool keep_alive_ = true;
  std::array<char, 4096> unread_;
};

class BeastAdminServer final : public AdminServer {
 public:
  BeastAdminServer(MetricsRegistry* registry, AdminProbes probes, AdminPages pages)
      : content_{registry, std::move(probes), std::move(pages)}, acceptor_(io_), pause_(io_) {}

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
    Accept();
    thread_ = std::thread([this] { io_.run(); });
    return absl::OkStatus();
  }

  int port() const override { return port_; }

 private:
  void Accept() {
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      if (error) {  // out of descriptors, say: it passes, but must not spin meanwhile
        pause_.expires_after(std::chrono::milliseconds(100));
        pause_.async_wait([this](error_code) { Accept(); });
        return;
      }
      if (content_.num_connections < kMaxConnections) {  // else it is closed
        std::make_shared<Connection>(std::move(socket), &content_)->Read();
      }
      Accept();
    });
  }

  int port_ = 0;  // constant after Listen

  // Owned by the server's thread. Connections live in io_ and count themselves: io_ goes first.
  AdminContent content_;
  asio::io_context io_{1};
  tcp::acceptor acceptor_;
  asio::steady_timer pause_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(const AdminOptions& options,
                                                                MetricsRegistry* registry,
                                                                AdminProbes probes,
                                                                AdminPages pages) {
  auto server = std::make_unique<BeastAdminServer>(registry, std::move(probes), std::move(pages));
  const absl::Status status = server->Listen(options);
  if (!status.ok()) return status;
  return absl::StatusOr<std::unique_ptr<AdminServer>>(std::move(server));
}

}  // namespace sluice
