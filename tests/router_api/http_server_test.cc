// The HTTP server's beginning and end, its threads, and who may use it from a page.
#include <gmock/gmock.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "tests/router_api/http_fixture.h"

namespace sluice::router {
namespace {

using testing::HasSubstr;

class DrainTest : public HttpFixture {};

TEST_F(DrainTest, RunningStreamsFinishIdleOnesEnd) {
  HttpClient idle(port());
  EXPECT_EQ(idle.Get("/livez").status, 200);
  HttpClient client(port());
  Json body = CompletionBody();
  body["stream"] = true;
  client.SendPost("/v1/completions", body.dump());
  const auto generation = dispatcher_.NextGeneration();
  generation.Tokens(Ids("first"));
  EXPECT_EQ(client.ReadHeaders().status, 200);
  std::thread drain([&] { server_->Drain(absl::Seconds(10)); });
  EXPECT_TRUE(idle.WaitForClose(absl::Seconds(5)));
  generation.Tokens(Ids("second"));
  generation.End(GenerationEnd::kLength);
  std::string body_text;
  for (std::string chunk = client.ReadChunk(); !chunk.empty(); chunk = client.ReadChunk()) {
    body_text += chunk;
  }
  EXPECT_EQ(EventsOf(body_text).back(), "[DONE]");
  client.Close();
  drain.join();
}

TEST_F(DrainTest, WhatDoesNotFinishIsCutOff) {
  HttpClient client(port());
  client.SendPost("/v1/completions", CompletionBody().dump());
  const auto generation = dispatcher_.NextGeneration();
  const absl::Time start = MonotonicNow();
  server_->Drain(absl::Milliseconds(200));
  EXPECT_LT(MonotonicNow() - start, absl::Seconds(2));
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(1)));
  EXPECT_TRUE(client.WaitForClose(absl::Seconds(2)));
}

TEST_F(DrainTest, DestructionCancelsWhatRuns) {
  HttpClient client(port());
  client.SendPost("/v1/completions", CompletionBody().dump());
  const auto generation = dispatcher_.NextGeneration();
  server_.reset();
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(1)));
  generation.Tokens(Ids("late"));  // to nobody
}

TEST_F(DrainTest, ATakenPortIsNamed) {
  HttpOptions options;
  options.port = port();
  const auto second = StartHttpServer(options, context_.get());
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(absl::StrCat(port())));
}

TEST_F(DrainTest, AHostNameIsRefusedWithWhatIsWanted) {
  HttpOptions options;
  options.host = "router.example";
  const auto server = StartHttpServer(options, context_.get());
  ASSERT_FALSE(server.ok());
  EXPECT_THAT(std::string(server.status().message()),
              HasSubstr("'router.example' is not an IP address"));
}

HttpOptions TwoThreadsAndCors() {
  HttpOptions options;
  options.num_threads = 2;
  options.cors_allow_origin = "https://ui.example";
  return options;
}
class TwoThreadsTest : public HttpFixture {
 protected:
  TwoThreadsTest() : HttpFixture(TwoThreadsAndCors()) {}
};

TEST_F(TwoThreadsTest, ManyClientsAtOnce) {
  AnswerWith("one two three four five");
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      HttpClient client(port());
      for (int i = 0; i < 20; ++i) {
        Json body = CompletionBody();
        body["stream"] = i % 2 == 0;
        const HttpReply reply = client.Post("/v1/completions", body.dump());
        if (reply.status == 200 && reply.complete) ++good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 160);
}

TEST_F(TwoThreadsTest, Cors) {
  HttpClient client(port());
  client.Send(
      "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: t\r\nOrigin: https://ui.example\r\n\r\n");
  HttpReply reply = client.ReadReply();
  EXPECT_EQ(reply.status, 204);
  EXPECT_EQ(reply.headers.at("access-control-allow-origin"), "https://ui.example");
  EXPECT_THAT(reply.headers.at("access-control-allow-methods"), HasSubstr("POST"));
  EXPECT_EQ(reply.headers.at("access-control-allow-headers"), "*, authorization");
  reply = client.Get("/livez");
  EXPECT_EQ(reply.headers.at("access-control-allow-origin"), "https://ui.example");
  EXPECT_EQ(reply.headers.at("access-control-expose-headers"),
            "x-request-id, retry-after, retry-after-ms, x-should-retry");
}

}  // namespace
}  // namespace sluice::router
