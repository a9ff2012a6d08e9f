// The client of `sluice bench`: what it makes of a server's answers, and what it does with its
// connection after them.
#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/streambuf.hpp>
#include <boost/asio/write.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "bench/loadgen/http_models.h"
#include "bench/loadgen/target.h"
#include "common/clock.h"

namespace sluice::loadgen {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

constexpr char kRefusal[] =
    "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: "
    "2\r\n\r\n{}";
constexpr char kAnswer[] =
    "HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\ndata: {\"choices\":[{}]}\n\ndata: [DONE]\n\n    ";

// Instead of an answer: the server works for 300 ms, then closes.
constexpr char kCrash[] = "";

// Gives the scripted answers, one a request, then ends; counts the connections it took for them. A
// connection lives as long as the client keeps it, or for one answer.
class ScriptedServer {
 public:
  // A completion's JSON ends a request, unless it has none.
  ScriptedServer(std::vector<std::string> answers, bool closes, std::string end_of_request = "}}")
      : answers_(std::move(answers)),
        closes_(closes),
        end_of_request_(std::move(end_of_request)),
        thread_([this] { Serve(); }) {}
  ~ScriptedServer() {
    if (thread_.joinable()) thread_.join();
  }
  std::string url() const {
    return absl::StrCat("http://127.0.0.1:", acceptor_.local_endpoint().port());
  }
  bool closes() const { return closes_; }
  void AwaitClosedConnections(int count) const {
    while (num_closed_ < count) absl::SleepFor(absl::Milliseconds(1));
  }
  int JoinAndCountConnections() {
    thread_.join();
    return num_connections_;
  }

 private:
  void Serve() {
    size_t next = 0;
    while (next < answers_.size()) {
      tcp::socket socket = acceptor_.accept();
      ++num_connections_;
      asio::streambuf input;
      boost::system::error_code error;
      while (next < answers_.size()) {
        asio::read_until(socket, input, end_of_request_, error);
        if (error) break;
        input.consume(input.size());
        const std::string& answer = answers_[next++];
        if (answer == kCrash) {
          absl::SleepFor(absl::Milliseconds(300));
          break;
        }
        asio::write(socket, asio::buffer(answer), error);
        if (closes_) break;
      }
      socket.close(error);
      ++num_closed_;
    }
  }

  const std::vector<std::string> answers_;
  const bool closes_;
  const std::string end_of_request_;
  asio::io_context io_;
  tcp::acceptor acceptor_{io_, tcp::endpoint(asio::ip::address_v4::loopback(), 0)};
  int num_connections_ = 0;
  std::atomic<int> num_closed_{0};
  std::thread thread_;
};

std::string Answer(const std::vector<std::string>& events) {
  std::string body;
  for (const std::string& event : events) absl::StrAppend(&body, "data: ", event, "\n\n");
  return absl::StrCat("HTTP/1.1 200 OK\r\nContent-Length: ", body.size(), "\r\n\r\n", body);
}

std::vector<absl::Status> RunAll(const ScriptedServer& server, int num_requests) {
  const auto target = (*HttpTargets(server.url(), "m"))();
  std::vector<absl::Status> statuses;
  for (int i = 0; i < num_requests; ++i) {
    statuses.push_back(target->Run({.prompt = {1, 2}, .max_tokens = 1}, absl::Seconds(10)).status);
    if (server.closes()) server.AwaitClosedConnections(i + 1);
  }
  return statuses;
}

TEST(HttpTarget, KeepsItsConnectionAfterARefusal) {
  ScriptedServer server({kRefusal, kRefusal, kAnswer}, /*closes=*/false);
  const auto statuses = RunAll(server, 3);
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(statuses[1].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(statuses[2].ok()) << statuses[2];
  EXPECT_EQ(server.JoinAndCountConnections(), 1);
}

TEST(HttpTarget, ReconnectsWhenTheServerHasClosed) {
  ScriptedServer server({kAnswer, kAnswer}, /*closes=*/true);
  for (const absl::Status& status : RunAll(server, 2)) EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(server.JoinAndCountConnections(), 2);
}

TEST(HttpTarget, ReconnectsAfterAnAnswerThatIsCutOff) {
  const std::string cut = std::string(kAnswer).substr(0, sizeof(kAnswer) - 10);
  ScriptedServer server({cut, kAnswer}, /*closes=*/true);
  const auto statuses = RunAll(server, 2);
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(statuses[1].ok()) << statuses[1];
  EXPECT_EQ(server.JoinAndCountConnections(), 2);
}

// Asked once more, the server would be timed for the second attempt, and its failure forgotten.
TEST(HttpTarget, AServerThatClosesInsteadOfAnsweringHasFailed) {
  ScriptedServer server({kAnswer, kCrash, kAnswer}, /*closes=*/false);
  const auto statuses = RunAll(server, 3);
  EXPECT_TRUE(statuses[0].ok()) << statuses[0];
  EXPECT_EQ(statuses[1].code(), absl::StatusCode::kUnavailable) << statuses[1];
  EXPECT_TRUE(statuses[2].ok()) << statuses[2];
  EXPECT_EQ(server.JoinAndCountConnections(), 2);
}

constexpr char kToken[] = R"({"choices":[{"index":0,"text":"a","finish_reason":null}]})";
constexpr char kHalfACharacter[] = R"({"choices":[{"index":0,"text":"","finish_reason":null}]})";
constexpr char kLastToken[] = R"({"choices":[{"index":0,"text":"b","finish_reason":"length"}]})";
constexpr char kEnd[] = R"({"choices":[{"index":0,"text":"","finish_reason":"length"}]})";
constexpr char kUsage[] =
    R"({"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}})";

TEST(HttpTarget, OnlyEventsWithTokensHaveGaps) {
  const std::vector<std::pair<std::vector<std::string>, size_t>> cases = {
      {{kToken, kLastToken, kUsage, "[DONE]"}, 1},
      {{kToken, kToken, kEnd, kUsage, "[DONE]"}, 1},
      {{kToken, kHalfACharacter, kLastToken, kUsage, "[DONE]"}, 2},
      {{kEnd, kUsage, "[DONE]"}, 0},  // its only token has no text
  };
  for (const auto& [events, num_gaps] : cases) {
    ScriptedServer server({Answer(events)}, /*closes=*/true);
    const RequestRecord record = (*HttpTargets(server.url(), "m"))()->Run(
        {.prompt = {1}, .max_tokens = 3}, absl::Seconds(9));
    EXPECT_TRUE(record.status.ok()) << record.status;
    EXPECT_EQ(record.gaps.size(), num_gaps) << absl::StrJoin(events, " ");
    EXPECT_EQ(record.output_tokens, 3);
  }
}

TEST(HttpModels, SayTheirContext) {
  const auto ask = [](const std::string& body) {
    ScriptedServer server(
        {absl::StrCat("HTTP/1.1 200 OK\r\nContent-Length: ", body.size(), "\r\n\r\n", body)},
        /*closes=*/true, /*end_of_request=*/"\r\n\r\n");
    return AskMaxModelLen(server.url(), "m", absl::Seconds(10));
  };
  const auto context = ask(R"({"data":[{"id":"l"},{"id":"m","max_model_len":32768}]})");
  ASSERT_TRUE(context.ok()) << context.status();
  EXPECT_EQ(*context, 32768);
  for (const char* body :
       {"", "{", "[]", R"({"data":[]})", R"({"data":[3,{"id":"m"}]})",
        R"({"data":[{"id":"m","max_model_len":-1}]})", R"({"data":[{"max_model_len":5}]})"}) {
    EXPECT_EQ(ask(body).status().code(), absl::StatusCode::kNotFound) << body;
  }
}

// The system accepts for it; nothing ever answers.
TEST(HttpTarget, ARequestEndsWithItsTime) {
  asio::io_context io;
  tcp::acceptor acceptor(io, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
  const auto target =
      (*HttpTargets(absl::StrCat("http://127.0.0.1:", acceptor.local_endpoint().port()), "m"))();
  const absl::Time start = MonotonicNow();
  const absl::Status status =
      target->Run({.prompt = {1, 2}, .max_tokens = 1}, absl::Milliseconds(200)).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_GE(MonotonicNow() - start, absl::Milliseconds(200));
}

TEST(HttpTarget, NobodyListens) {
  int port = 0;
  {
    asio::io_context io;
    port = tcp::acceptor(io, tcp::endpoint(asio::ip::address_v4::loopback(), 0))
               .local_endpoint()
               .port();
  }
  const auto target = (*HttpTargets(absl::StrCat("http://127.0.0.1:", port), "m"))();
  const absl::Status status =
      target->Run({.prompt = {1}, .max_tokens = 1}, absl::Seconds(5)).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

}  // namespace
}  // namespace sluice::loadgen
