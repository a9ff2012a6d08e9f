#include "metrics/admin_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// A blocking client connection that gives up after 20 s.
class Connection {
 public:
  explicit Connection(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const timeval timeout = {20, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Connection() { close(fd_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void Send(const std::string& text) {
    // A refused connection may be gone by now: the answer is what counts.
    (void)!send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
  }
  // Until `end` has come or the server has closed.
  std::string ReadUntil(const std::string& end) {
    std::string text;
    char buffer[4096];
    while (end.empty() || !absl::StrContains(text, end)) {
      const ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
      if (n <= 0) break;
      text.append(buffer, static_cast<size_t>(n));
    }
    return text;
  }
  std::string ReadAll() { return ReadUntil(""); }

 private:
  const int fd_;
};

class AdminServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    registry_.AddCounter("sluice_test_total", "Test.")->Increment(41);
    absl::StatusOr<std::unique_ptr<AdminServer>> server = AdminServer::Start(
        {.host = "127.0.0.1", .port = 0}, &registry_,
        {.live = nullptr,
         .ready = [this] { return std::string(ready_ ? "" : "no decode worker"); },
         .started = [] { return std::string(); }});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ASSERT_GT(server_->port(), 0);
  }

  std::string Get(const std::string& target, const std::string& method = "GET") {
    Connection connection(server_->port());
    connection.Send(
        absl::StrCat(method, " ", target, " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    return connection.ReadAll();
  }

  std::atomic<bool> ready_ = true;
  MetricsRegistry registry_;
  std::unique_ptr<AdminServer> server_;
};

TEST_F(AdminServerTest, ProbesAnswerOkOrTheReason) {
  EXPECT_THAT(Get("/livez"), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(Get("/startupz"), HasSubstr("\r\n\r\nok\n"));
  EXPECT_THAT(Get("/readyz?verbose"), StartsWith("HTTP/1.1 200"));
  ready_ = false;
  const std::string answer = Get("/readyz");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(answer, HasSubstr("\r\n\r\nno decode worker\n"));
}

TEST_F(AdminServerTest, MetricsHaveThePrometheusContentType) {
  const std::string answer = Get("/metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  EXPECT_THAT(answer, HasSubstr("\nsluice_test_total 41\n"));
}

TEST_F(AdminServerTest, OtherPathsAndMethodsAreRefused) {
  EXPECT_THAT(Get("/"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Get("/metricsx"), HasSubstr("there are /livez, /readyz, /startupz and /metrics"));
  EXPECT_THAT(Get("/livez", "DELETE"), StartsWith("HTTP/1.1 405"));
  Connection post(server_->port());
  post.Send("POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
  const std::string answer = post.ReadAll();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(answer, HasSubstr("Allow: GET, HEAD\r\n"));
  EXPECT_THAT(answer, HasSubstr("Connection: close\r\n"));
}

TEST_F(AdminServerTest, HeadHasTheLengthButNoBody) {
  const std::string answer = Get("/livez", "HEAD");
  EXPECT_THAT(answer, HasSubstr("Content-Length: 3\r\n"));
  EXPECT_THAT(answer, ::testing::EndsWith("\r\n\r\n"));
}

TEST_F(AdminServerTest, AConnectionServesManyRequests) {
  Connection connection(server_->port());
  for (int i = 0; i < 5; ++i) {
    connection.Send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_THAT(connection.ReadUntil("\r\n\r\nok\n"), StartsWith("HTTP/1.1 200"));
  }
}

TEST_F(AdminServerTest, NonsenseAndLargeHeadersAreRefused) {
  Connection nonsense(server_->port());
  nonsense.Send("\x16\x03\x01 not http\r\n\r\n");
  EXPECT_THAT(nonsense.ReadAll(), StartsWith("HTTP/1.1 400"));
  Connection large(server_->port());
  large.Send(absl::StrCat("GET /livez HTTP/1.1\r\nX: ", std::string(20000, 'a'), "\r\n\r\n"));
  EXPECT_THAT(large.ReadAll(), StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(Get("/livez"), StartsWith("HTTP/1.1 200")) << "the server goes on";
}

TEST_F(AdminServerTest, ASilentClientIsClosedAfterTheDeadline) {
  Connection silent(server_->port());
  silent.Send("GET /livez HTT");
  const absl::Time start = MonotonicNow();
  EXPECT_EQ(silent.ReadAll(), "");
  EXPECT_GT(MonotonicNow() - start, absl::Seconds(4));
  EXPECT_LT(MonotonicNow() - start, absl::Seconds(15));
}

TEST_F(AdminServerTest, ConnectionsBeyondTheLimitAreClosedAndThoseBelowServed) {
  std::vector<std::unique_ptr<Connection>> held;
  for (int i = 0; i < 64; ++i) {
    held.push_back(std::make_unique<Connection>(server_->port()));
    held.back()->Send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    ASSERT_THAT(held.back()->ReadUntil("ok\n"), StartsWith("HTTP/1.1 200")) << i;
  }
  EXPECT_EQ(Get("/livez"), "");
  held.clear();
  std::string answer;
  for (int i = 0; i < 100 && answer.empty(); ++i) {
    answer = Get("/livez");  // until the server has seen the others close
    if (answer.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
}

TEST_F(AdminServerTest, StopsWithConnectionsOpen) {
  Connection idle(server_->port());
  idle.Send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(idle.ReadUntil("ok\n"), HasSubstr("200"));
  server_.reset();
  EXPECT_EQ(idle.ReadAll(), "");
}

TEST_F(AdminServerTest, AnAddressInUseIsNamed) {
  MetricsRegistry registry;
  const absl::Status status =
      AdminServer::Start({.host = "127.0.0.1", .port = server_->port()}, &registry, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("127.0.0.1:", server_->port(), ": Address already in use")));
}

TEST(AdminServerStartTest, AddressesThatAreNoneAreRefused) {
  MetricsRegistry registry;
  for (const AdminOptions& options :
       {AdminOptions{"no.such.host.invalid", 0}, AdminOptions{"127.0.0.1", 70000}}) {
    EXPECT_EQ(AdminServer::Start(options, &registry, {}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace sluice
