// What the HTTP server does with clients that are wrong, slow, gone or malicious.
#include <gmock/gmock.h>

#include <functional>
#include <iterator>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "tests/router_api/http_fixture.h"

namespace sluice::router {
namespace {

using testing::HasSubstr;
using testing::Not;

HttpOptions SmallLimits() {
  HttpOptions options;
  options.max_header_bytes = 4096;
  options.max_body_bytes = 64 * 1024;
  options.max_stream_buffer_bytes = 64 * 1024;
  options.socket_send_buffer_bytes = 4096;
  options.max_connections = 8;
  return options;
}

class HostileClientTest : public HttpFixture {
 protected:
  HostileClientTest() : HttpFixture(SmallLimits()) {}

  // A stream whose first event has arrived.
  FakeDispatcher::Generation StartStream(HttpClient* client) {
    Json body = CompletionBody();
    body["stream"] = true;
    client->SendPost("/v1/completions", body.dump());
    auto generation = dispatcher_.NextGeneration();
    generation.Tokens(Ids("first"));
    EXPECT_EQ(client->ReadHeaders().status, 200);
    EXPECT_THAT(client->ReadChunk(), HasSubstr("first"));
    return generation;
  }
};

TEST_F(HostileClientTest, PathsAndMethods) {
  HttpReply reply = Get("/v1/unknown");
  EXPECT_EQ(reply.status, 404);
  EXPECT_EQ(ErrorCode(reply), "unknown_path");
  for (const char* path :
       {"/", "//", "/v1", "/v1/", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/models//",
        "/v1/v1/models", "/../etc/passwd", "/%00", "/v1/chat/completions//", "/metrics"}) {
    EXPECT_EQ(Get(path).status, 404) << path;
  }
  reply = Get("/v1/chat/completions");
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.headers.at("allow"), "POST");
  EXPECT_EQ(ErrorCode(reply), "method_not_allowed");
  reply = Post("/v1/models", Json::object());
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.headers.at("allow"), "GET, HEAD");
  EXPECT_EQ(Get("/v1/models/").status, 200) << "a slash at the end makes no difference";
  EXPECT_EQ(Get("/v1/chat/completions/").status, 405);
  for (const char* path : {"/v1/responses", "/embeddings/", "/v1/responses/resp_1"}) {
    EXPECT_THAT(Get(path).body, HasSubstr("/v1/chat/completions")) << path;
  }
  EXPECT_THAT(Get("/v1/unknown").body, Not(HasSubstr("completions")));
  for (const char* method : {"DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"}) {
    HttpClient client(port());
    client.Send(absl::StrCat(method, " /v1/completions HTTP/1.1\r\nHost: t\r\n\r\n"));
    EXPECT_EQ(client.ReadReply().status, 405) << method;
  }
  HttpClient client(port());
  client.Send(
      "HEAD /health HTTP/1.1\r\nHost: t\r\n\r\nGET /livez?x=1#y HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(client.ReadReply(/*head=*/true).status, 200);
  EXPECT_EQ(client.ReadReply().body, "ok\n");
}

TEST_F(HostileClientTest, GarbageInsteadOfHttp) {
  for (const std::string& garbage :
       {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11),  // TLS
        std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), std::string("hello\r\n\r\n"),
        std::string("GET / HTTP/9.9\r\n\r\n"), std::string("GET  HTTP/1.1\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nBad Header: x\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\n: x\r\n\r\n"), std::string(64, '\0') + "\r\n\r\n",
        std::string("POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n"),
        std::string("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        std::string("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
                    "0\r\n\r\n"),
        std::string("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")}) {
    HttpClient client(port());
    client.Send(garbage);
    const HttpReply reply = client.ReadReply();
    EXPECT_EQ(reply.status, 400) << garbage;
    EXPECT_EQ(reply.headers.at("connection"), "close");
    EXPECT_TRUE(client.WaitForClose(absl::Seconds(5)));
  }
}

TEST_F(HostileClientTest, BodyTooLarge) {
  // Announced.
  HttpClient announced(port());
  announced.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000000\r\n\r\n");
  HttpReply reply = announced.ReadReply();
  EXPECT_EQ(reply.status, 413);
  EXPECT_EQ(ErrorCode(reply), "body_too_large");
  // Announced and sent at once: the answer must survive the unread input.
  HttpClient sent(port());
  sent.SendPost("/v1/completions", std::string(400 * 1024, 'x'));
  EXPECT_EQ(sent.ReadReply().status, 413);
  // In chunks, unannounced.
  HttpClient chunked(port());
  chunked.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 70; ++i) {
    if (!chunked.Send(absl::StrCat("400\r\n", std::string(1024, 'x'), "\r\n"))) break;
  }
  EXPECT_EQ(chunked.ReadReply().status, 413);
}

TEST_F(HostileClientTest, ARefusedBodyKeepsTheNameOfItsRequest) {
  HttpClient announced(port());
  announced.Send(
      "POST /v1/completions?a=b HTTP/1.1\r\nHost: t\r\nx-request-id: mine-1\r\n"
      "Content-Length: 1000000000\r\n\r\n");
  HttpReply reply = announced.ReadReply();
  EXPECT_EQ(reply.status, 413);
  EXPECT_EQ(reply.headers["x-request-id"], "mine-1");
  HttpClient chunked(port());
  chunked.Send(
      "POST /tokenize HTTP/1.1\r\nHost: t\r\nx-request-id: mine-2\r\n"
      "Transfer-Encoding: chunked\r\n\r\nfffffff\r\nx");
  reply = chunked.ReadReply();
  EXPECT_EQ(reply.status, 413);
  EXPECT_EQ(reply.headers["x-request-id"], "mine-2");
  // Of a path that is not there, and to a HEAD, whose answers have no body.
  HttpClient head(port());
  head.Send("HEAD /no/where HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000000\r\n\r\n");
  reply = head.ReadReply(/*head=*/true);
  EXPECT_EQ(reply.status, 413);
  EXPECT_EQ(reply.headers["x-request-id"].size(), 32u);
  EXPECT_FALSE(head.ReadSome());
  for (const char* route : {"/v1/completions", "/tokenize", "other"}) {
    EXPECT_TRUE(WaitForMetric(
        absl::StrCat("sluice_http_requests_total{code=\"413\",route=\"", route, "\"}"), "1"));
  }
}

TEST_F(HostileClientTest, HeaderFlood) {
  HttpClient client(port());
  std::string flood = "GET /health HTTP/1.1\r\nHost: t\r\n";
  for (int i = 0; i < 500; ++i) absl::StrAppend(&flood, "X-Flood-", i, ": aaaaaaaaaaaaaaaa\r\n");
  client.Send(flood + "\r\n");
  const HttpReply reply = client.ReadReply();
  EXPECT_EQ(reply.status, 431);
  EXPECT_EQ(ErrorCode(reply), "headers_too_large");
  HttpClient endless(port());
  endless.Send("GET /" + std::string(100000, 'a'));
  EXPECT_EQ(endless.ReadReply().status, 431);
}

TEST_F(HostileClientTest, ChunkedBodiesAndMissingLength) {
  AnswerWith("x");
  const std::string json = CompletionBody().dump();
  HttpClient client(port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (char c : json) client.Send(absl::StrCat("1;ext=1\r\n", std::string(1, c), "\r\n"));
  client.Send("0\r\nTrailer: x\r\n\r\n");
  EXPECT_EQ(client.ReadReply().status, 200);
  // Without a length there is no body.
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(client.ReadReply().status, 400);
}

// Beast 1.81 asserts that this cannot be; see cmake/SluiceDependencies.cmake.
TEST_F(HostileClientTest, TheLastChunkMayComeByteByByte) {
  AnswerWith("x");
  HttpClient client(port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string json = CompletionBody().dump();
  client.Send(absl::StrCat(absl::Hex(json.size()), "\r\n", json, "\r\n"));
  for (const char* piece : {"0\r\n", "\r", "\n"}) {
    absl::SleepFor(absl::Milliseconds(30));
    client.Send(piece);
  }
  EXPECT_EQ(client.ReadReply().status, 200);
  HttpClient empty(port());
  empty.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (const char* piece : {"0\r\n", "\r", "\n"}) {
    absl::SleepFor(absl::Milliseconds(30));
    empty.Send(piece);
  }
  EXPECT_EQ(empty.ReadReply().status, 400);
}

TEST_F(HostileClientTest, ExpectContinue) {
  AnswerWith("x");
  const std::string json = CompletionBody().dump();
  HttpClient client(port());
  client.Send(absl::StrCat("POST /v1/completions HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n",
                           "Content-Length: ", json.size(), "\r\n\r\n"));
  EXPECT_EQ(client.ReadHeaders().status, 100);
  client.Send(json);
  EXPECT_EQ(client.ReadReply().status, 200);
}

TEST_F(HostileClientTest, PipelinedRequestsAreAnsweredInOrder) {
  AnswerWith("x");
  Json stream = CompletionBody();
  stream["stream"] = true;
  const std::string json = stream.dump();
  std::string requests;
  for (int i = 0; i < 10; ++i) {
    absl::StrAppend(&requests,
                    "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: ", json.size(),
                    "\r\n\r\n", json, "GET /version HTTP/1.1\r\nHost: t\r\n\r\n");
  }
  HttpClient client(port());
  client.Send(requests);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(EventsOf(client.ReadReply().body).back(), "[DONE]");
    EXPECT_THAT(client.ReadReply().body, HasSubstr("version"));
  }
}

TEST_F(HostileClientTest, InputAheadOfAStreamIsBounded) {
  HttpClient client(port());
  const auto generation = StartStream(&client);
  // The server stops reading at its bound; then the kernel's buffers fill and our sends would
  // block.
  std::thread flood([&] {
    for (int i = 0; i < 64; ++i) {
      if (!client.Send(std::string(64 * 1024, 'x'))) return;
    }
  });
  absl::SleepFor(absl::Milliseconds(200));
  generation.Tokens(Ids("second"));
  EXPECT_THAT(client.ReadChunk(), HasSubstr("second"));
  generation.End(GenerationEnd::kLength);
  // What came ahead is not HTTP: refused, and the connection ends.
  EXPECT_TRUE(client.WaitForClose(absl::Seconds(5)));
  flood.join();
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(HostileClientTest, SlowReaderIsClosedAtTheCap) {
  HttpClient client(port(), /*receive_buffer_bytes=*/2048);
  Json body = CompletionBody();
  body["stream"] = true;
  body["max_tokens"] = 400;
  body["logprobs"] = 5;
  client.SendPost("/v1/completions", body.dump());
  const auto generation = dispatcher_.NextGeneration();
  const TokenId a = Ids("a")[0];
  SampledToken token{a, -1, {}};
  for (int i = 0; i < 5; ++i) token.top.push_back({a + i, -1.5f});
  // Far more than cap and kernel buffers hold; nothing is read.
  for (int i = 0; i < 20000 && dispatcher_.num_unfinished() > 0; ++i) {
    generation.Sampled(std::vector<SampledToken>(4, token));
    if (i % 100 == 99) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(10)));
  EXPECT_TRUE(client.WaitForClose(absl::Seconds(5)));
  EXPECT_TRUE(WaitForMetric("sluice_slow_client_evictions_total{api=\"http\"}", "1"));
  EXPECT_TRUE(WaitForMetric("sluice_stream_buffered_bytes{api=\"http\"}", "0"));
  EXPECT_TRUE(WaitForMetric("sluice_streams{api=\"http\"}", "0"));
}

TEST_F(HostileClientTest, DisconnectCancelsWithinASecond) {
  // While waiting for the first token, streaming or not, and in the middle of a stream; by end of
  // file and by reset.
  for (const bool stream : {false, true}) {
    for (const bool reset : {false, true}) {
      HttpClient client(port());
      Json body = CompletionBody();
      body["stream"] = stream;
      client.SendPost("/v1/completions", body.dump());
      const auto generation = dispatcher_.NextGeneration();
      reset ? client.Reset() : client.Close();
      EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(1)));
    }
  }
  EXPECT_TRUE(WaitForMetric("sluice_client_disconnects_total{phase=\"before_first_token\"}", "4"));
  EXPECT_TRUE(
      WaitForMetric("sluice_http_requests_total{code=\"499\",route=\"/v1/completions\"}", "4"));
  for (const bool reset : {false, true}) {
    HttpClient client(port());
    const auto generation = StartStream(&client);
    reset ? client.Reset() : client.Close();
    EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(1)));
  }
  EXPECT_TRUE(WaitForMetric("sluice_client_disconnects_total{phase=\"streaming\"}", "2"));
  EXPECT_TRUE(WaitForMetric("sluice_http_connections", "0"));
}

// What the server does not read ahead of an answer hides neither the client's end nor its requests.
class MuchAheadTest : public HttpFixture {
 protected:
  static Json PaddedBody() {
    Json body = CompletionBody();
    body["metadata"] = {{"padding", std::string(100 * 1024, 'a')}};
    return body;
  }
};

TEST_F(MuchAheadTest, DisconnectIsNoticed) {
  const std::function<void(HttpClient*)> leave[] = {
      [](HttpClient* client) { client->Close(); },
      [](HttpClient* client) { client->ShutdownSend(); },
      [](HttpClient* client) { client->Reset(); },
  };
  for (size_t i = 0; i < std::size(leave); ++i) {
    HttpClient client(port());
    client.SendPost("/v1/completions", CompletionBody().dump());
    const auto generation = dispatcher_.NextGeneration();
    client.SendPost("/v1/completions", PaddedBody().dump());
    absl::SleepFor(absl::Milliseconds(100));
    leave[i](&client);
    EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(3))) << i;
  }
  EXPECT_TRUE(WaitForMetric("sluice_http_connections", "0"));
}

TEST_F(MuchAheadTest, WhoStaysIsAnswered) {
  HttpClient client(port());
  client.SendPost("/v1/completions", CompletionBody().dump());
  auto generation = dispatcher_.NextGeneration();
  client.SendPost("/v1/completions", PaddedBody().dump());
  client.SendPost("/v1/completions", PaddedBody().dump());
  absl::SleepFor(absl::Milliseconds(1500));  // it has been looked at
  for (const char* text : {"one", "two", "three"}) {
    generation.Tokens(Ids(text));
    generation.End(GenerationEnd::kLength);
    const HttpReply reply = client.ReadReply();
    EXPECT_EQ(reply.status, 200);
    EXPECT_THAT(reply.body, HasSubstr(text));
    if (std::string(text) != "three") generation = dispatcher_.NextGeneration();
  }
}

// Only for clients that are slow on purpose: any other may have to wait as long for the machine.
HttpOptions ShortTimeouts() {
  HttpOptions options;
  options.header_timeout = absl::Milliseconds(300);
  options.body_timeout = absl::Milliseconds(300);
  options.idle_timeout = absl::Milliseconds(600);
  options.max_body_bytes = 1 << 30;  // nothing but time ends a flood
  return options;
}

class SlowClientTest : public HttpFixture {
 protected:
  SlowClientTest() : HttpFixture(ShortTimeouts()) {}
};

TEST_F(SlowClientTest, SlowLorisIsCutOff) {
  HttpClient headers(port());
  headers.Send("GET /health HTTP/1.1\r\nX-A: ");
  HttpClient body(port());
  body.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: t\r\nx-request-id: slow-body\r\n"
      "Content-Length: 100\r\n\r\n{");
  HttpClient idle(port());
  // A byte now and then must not extend the deadline.
  for (int i = 0; i < 3; ++i) {
    absl::SleepFor(absl::Milliseconds(60));
    headers.Send("a");
    body.Send(" ");
  }
  HttpReply reply = headers.ReadReply();
  EXPECT_EQ(reply.status, 408);
  EXPECT_EQ(ErrorCode(reply), "request_timeout");
  reply = body.ReadReply();
  EXPECT_EQ(reply.status, 408);
  EXPECT_EQ(reply.headers["x-request-id"], "slow-body");
  EXPECT_TRUE(idle.WaitForClose(absl::Seconds(5)));
}

// While bytes are there no read is pending that could be cancelled.
class TinyChunksTest : public SlowClientTest {
 protected:
  // Until `duration` has passed or the server has closed; false if it has.
  bool Flood(HttpClient* client, absl::Duration duration) {
    client->Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    std::string chunks;
    for (int i = 0; i < 4096; ++i) chunks += "1\r\n \r\n";
    const absl::Time end = MonotonicNow() + duration;
    while (MonotonicNow() < end) {
      if (!client->Send(chunks)) return false;
    }
    return true;
  }
};

TEST_F(TinyChunksTest, DoNotHideTheDeadline) {
  for (int round = 0; round < 3; ++round) {
    HttpClient client(port());
    Flood(&client, absl::Milliseconds(600));  // and then nothing more
    EXPECT_TRUE(client.WaitForClose(absl::Seconds(5)));
  }
  EXPECT_TRUE(WaitForMetric("sluice_http_connections", "0"));
}

TEST_F(TinyChunksTest, EndThoughTheyKeepComing) {
  HttpClient client(port());
  EXPECT_FALSE(Flood(&client, absl::Seconds(10)));
}

TEST_F(SlowClientTest, ALongAnswerIsNotIdle) {
  HttpClient client(port());
  client.SendPost("/v1/completions", CompletionBody().dump());
  const auto generation = dispatcher_.NextGeneration();
  absl::SleepFor(absl::Seconds(1));  // longer than every timeout of this server
  generation.Tokens(Ids("late"));
  generation.End(GenerationEnd::kLength);
  EXPECT_EQ(client.ReadReply().status, 200);
}

TEST_F(HostileClientTest, IdleConnectionsKeepNobodyOut) {
  // Ten times the cap, and none of them ever asks for anything.
  std::vector<std::unique_ptr<HttpClient>> idle;
  for (int i = 0; i < 80; ++i) {
    idle.push_back(std::make_unique<HttpClient>(port()));
    if (i % 10 == 9) {
      EXPECT_EQ(Get("/livez").status, 200) << i;
    }
  }
  EXPECT_TRUE(idle.front()->WaitForClose(absl::Seconds(5)));
  HttpClient busy(port());
  const auto generation = StartStream(&busy);
  for (int i = 0; i < 20; ++i) idle.push_back(std::make_unique<HttpClient>(port()));
  EXPECT_EQ(Get("/livez").status, 200);
  generation.End(GenerationEnd::kLength);
  std::string chunk;
  while (!(chunk = busy.ReadChunk()).empty()) {
    if (chunk.find("[DONE]") != std::string::npos) break;
  }
  EXPECT_THAT(chunk, HasSubstr("[DONE]")) << "who has a request is not closed";
}

TEST_F(HostileClientTest, BusyConnectionsAreCapped) {
  std::vector<std::unique_ptr<HttpClient>> clients;
  std::vector<FakeDispatcher::Generation> generations;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<HttpClient>(port()));
    generations.push_back(StartStream(clients.back().get()));
  }
  HttpClient over(port());
  HttpReply reply = over.ReadReply();
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(ErrorCode(reply), "no_capacity");
  EXPECT_EQ(reply.headers["retry-after"], "2");
  EXPECT_EQ(reply.headers["retry-after-ms"], "2000");
  EXPECT_EQ(reply.headers["x-should-retry"], "true");
  EXPECT_NE(reply.headers["date"], "");
  clients.pop_back();
  EXPECT_TRUE(WaitForMetric("sluice_http_connections", "7"));
  EXPECT_EQ(Get("/livez").status, 200);
}

TEST_F(HostileClientTest, RequestIdsAreNotEchoedBlindly) {
  for (const char* id : {"a b", "x\"y", "<script>", "\xff\xfe", ""}) {
    HttpClient client(port());
    client.Send(absl::StrCat("GET /livez HTTP/1.1\r\nHost: t\r\nx-request-id: ", id, "\r\n\r\n"));
    const HttpReply reply = client.ReadReply();
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.headers.at("x-request-id").size(), 32u) << id;
  }
}

// A long prompt is prepared on the pool, where it stalls no stream.
class LongPromptTest : public HttpFixture {};

TEST_F(LongPromptTest, PreparedOffTheLoop) {
  AnswerWith("ok");
  Json body = CompletionBody(std::string(100 * 1024, 'a'));
  const HttpReply reply = Post("/v1/completions", body);
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(ErrorCode(reply), "context_length_exceeded");
  Json padded = CompletionBody("short");
  padded["metadata"] = {{"padding", std::string(100 * 1024, 'a')}};
  EXPECT_EQ(Post("/v1/completions", padded).status, 200);
}

TEST_F(LongPromptTest, ClientsThatLeaveMeanwhileAreForgotten) {
  Json padded = CompletionBody("short");
  padded["metadata"] = {{"padding", std::string(2 * 1024 * 1024, 'a')}};
  for (int i = 0; i < 8; ++i) {
    HttpClient client(port());
    client.SendPost("/v1/completions", padded.dump());
    client.Reset();
  }
  EXPECT_TRUE(WaitForMetric("sluice_http_connections", "0"));
}

}  // namespace
}  // namespace sluice::router
