// Event streams as the clients of the field parse them: each test reads like one of them
// (docs/api.md).
#include <gmock/gmock.h>

#include <map>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "tests/router_api/http_fixture.h"

namespace sluice::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class StreamTest : public HttpFixture {
 protected:
  HttpReply Stream(const std::string& path, Json body) {
    body["stream"] = true;
    HttpReply reply = Post(path, body);
    EXPECT_EQ(reply.status, 200) << reply.body;
    EXPECT_TRUE(reply.complete);
    return reply;
  }
  const std::string text_ = "The owl counts: 1, 2, 世界 🙂.\nDone \"quoted\".";
};

TEST_F(StreamTest, HeadersAndFraming) {
  AnswerWith(text_);
  const HttpReply reply = Stream("/v1/chat/completions", ChatBody());
  EXPECT_EQ(reply.headers.at("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(reply.headers.at("cache-control"), "no-cache");
  EXPECT_EQ(reply.headers.at("x-accel-buffering"), "no");
  EXPECT_FALSE(reply.headers.at("x-request-id").empty());
  // One event a chunk, each one line of JSON.
  for (const std::string& chunk : reply.chunks) {
    EXPECT_EQ(chunk.rfind("data: ", 0), 0u) << chunk;
    EXPECT_EQ(chunk.find('\n'), chunk.size() - 2) << chunk;
  }
  EXPECT_EQ(reply.chunks.back(), "data: [DONE]\n\n");
}

TEST_F(StreamTest, OpenAiClients) {
  AnswerWith(text_);
  const auto events = EventsOf(Stream("/v1/chat/completions", ChatBody()).body);
  std::string content, id;
  int finishes = 0;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const Json chunk = Json::parse(events[i]);
    for (const char* key : {"id", "object", "created", "model", "choices"}) {
      ASSERT_TRUE(chunk.contains(key)) << events[i];
    }
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    if (id.empty()) id = chunk["id"];
    EXPECT_EQ(chunk["id"], id);
    ASSERT_EQ(chunk["choices"].size(), 1u) << "no usage chunk unless asked";
    EXPECT_FALSE(chunk.contains("usage"));
    const Json& delta = chunk["choices"][0]["delta"];
    // The role comes with the first token and never again.
    EXPECT_EQ(delta.contains("role"), i == 0);
    if (i == 0) {
      EXPECT_NE(delta["content"], "") << "a role alone would fake the time to first token";
    }
    if (delta.contains("content")) content += delta["content"];
    if (!chunk["choices"][0]["finish_reason"].is_null()) ++finishes;
  }
  EXPECT_EQ(content, text_);
  EXPECT_EQ(finishes, 1);
  EXPECT_EQ(events.back(), "[DONE]");
}

// vllm bench serve: strips each network read, needs choices[0].delta, reads usage only when choices
// is empty.
TEST_F(StreamTest, VllmBench) {
  AnswerWith(text_);
  for (const char* path : {"/v1/chat/completions", "/v1/completions"}) {
    const bool chat = std::string(path) == "/v1/chat/completions";
    Json body = chat ? ChatBody() : CompletionBody();
    body["stream_options"] = {{"include_usage", true}};
    body["ignore_eos"] = false;
    body["logprobs"] = nullptr;
    body["repetition_penalty"] = 1.0;
    std::string generated;
    int output_tokens = -1;
    for (std::string chunk : Stream(path, body).chunks) {
      while (!chunk.empty() && isspace(static_cast<unsigned char>(chunk.back()))) chunk.pop_back();
      ASSERT_EQ(chunk.rfind("data: ", 0), 0u);
      chunk = chunk.substr(6);
      if (chunk == "[DONE]") continue;
      const Json data = Json::parse(chunk);
      if (!data["choices"].empty()) {
        const Json& choice = data["choices"][0];
        generated +=
            chat ? choice.at("delta").value("content", "") : choice.at("text").get<std::string>();
      } else if (data.contains("usage") && !data["usage"].is_null()) {
        output_tokens = data["usage"]["completion_tokens"];
      }
    }
    EXPECT_EQ(generated, text_);
    EXPECT_EQ(output_tokens, static_cast<int>(Ids(text_).size()) + 1);
  }
}

// sglang.bench_serving: every line but [DONE] must be JSON after "data: ", and choices[0] is
// indexed without a look.
TEST_F(StreamTest, SglangBench) {
  AnswerWith(text_);
  const HttpReply reply = Stream("/v1/chat/completions", ChatBody());
  std::istringstream lines(reply.body);
  std::string generated;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) continue;
    ASSERT_EQ(line.rfind("data: ", 0), 0u);
    if (line == "data: [DONE]") continue;
    const Json data = Json::parse(line.substr(6));
    generated += data["choices"].at(0)["delta"].value("content", "");
  }
  EXPECT_EQ(generated, text_);
}

class LongContextStreamTest : public HttpFixture {
 protected:
  static ApiOptions LongContext() {
    ApiOptions options;
    options.max_model_len = 1 << 22;
    return options;
  }
  LongContextStreamTest() : HttpFixture({}, LongContext()) {}
};

// More than the buffer of a slow client, to clients that read.
TEST_F(LongContextStreamTest, LargeEventsReachAClientThatReads) {
  AnswerWith(" there");
  std::string prompt;
  while (prompt.size() < (2U << 20)) prompt += "once upon a time ";
  Json body = CompletionBody(prompt);
  body["stream"] = true;
  body["echo"] = true;
  body["n"] = 3;
  const HttpReply reply = Post("/v1/completions", body);
  EXPECT_EQ(reply.status, 200);
  EXPECT_TRUE(reply.complete);
  std::vector<std::string> texts(3);
  for (const std::string& event : EventsOf(reply.body)) {
    if (event == "[DONE]") continue;
    const Json choice = Json::parse(event)["choices"][0];
    texts[choice["index"].get<size_t>()] += choice["text"].get<std::string>();
  }
  for (const std::string& text : texts) EXPECT_TRUE(text == prompt + " there") << text.size();
  EXPECT_TRUE(WaitForMetric("sluice_stream_buffered_bytes{api=\"http\"}", "0"));
}

// Prompts that come back are not counted without end.
TEST_F(LongContextStreamTest, AClientThatReadsNoneOfManyLargeEventsIsEvicted) {
  HttpClient client(port(), /*receive_buffer_bytes=*/2048);
  std::string prompt;
  while (prompt.size() < (2U << 20)) prompt += "once upon a time ";
  Json body = CompletionBody(prompt);
  body["stream"] = true;
  body["echo"] = true;
  body["n"] = 16;
  client.SendPost("/v1/completions", body.dump());
  const TokenId a = Ids("a")[0];
  const auto first = dispatcher_.NextGeneration();
  first.Tokens({a});
  // Its write is under way, without an end, before the others answer.
  for (int i = 0; i < 1000; ++i) {
    if (MetricsText().find("sluice_stream_buffered_bytes{api=\"http\"} 0") == std::string::npos) {
      break;
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  for (int i = 1; i < 16; ++i) dispatcher_.NextGeneration().Tokens({a});
  EXPECT_TRUE(dispatcher_.WaitForCancel(first.spec().id, absl::Seconds(10)));
  EXPECT_TRUE(WaitForMetric("sluice_slow_client_evictions_total{api=\"http\"}", "1"));
  EXPECT_TRUE(WaitForMetric("sluice_stream_buffered_bytes{api=\"http\"}", "0"));
}

// guidellm: include_usage and continuous_usage_stats together.
TEST_F(StreamTest, GuidellmContinuousUsage) {
  AnswerWith(text_);
  Json body = ChatBody();
  body["stream_options"] = {{"include_usage", true}, {"continuous_usage_stats", true}};
  const auto events = EventsOf(Stream("/v1/chat/completions", body).body);
  int last = 0;
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    const Json usage = Json::parse(events[i])["usage"];
    ASSERT_FALSE(usage.is_null());
    EXPECT_GE(usage["completion_tokens"].get<int>(), last);
    last = usage["completion_tokens"];
  }
  const Json final_chunk = Json::parse(events[events.size() - 2]);
  EXPECT_TRUE(final_chunk["choices"].empty());
  EXPECT_EQ(final_chunk["usage"]["completion_tokens"], last);
  EXPECT_EQ(final_chunk["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
}

// aiperf: raises on an unknown `object`.
TEST_F(StreamTest, AiperfObjects) {
  AnswerWith("x");
  const std::set<std::string> known = {"chat.completion", "chat.completion.chunk",
                                       "text_completion", "completion"};
  for (const char* path : {"/v1/chat/completions", "/v1/completions"}) {
    const Json body = std::string(path) == "/v1/chat/completions" ? ChatBody() : CompletionBody();
    for (const std::string& event : EventsOf(Stream(path, body).body)) {
      if (event != "[DONE]") {
        EXPECT_EQ(known.count(Json::parse(event)["object"]), 1u);
      }
    }
  }
}

TEST_F(StreamTest, ChoicesInterleaveByIndex) {
  AnswerWith("abc def");
  Json body = CompletionBody();
  body["n"] = 3;
  std::map<int, std::string> texts;
  for (const std::string& event : EventsOf(Stream("/v1/completions", body).body)) {
    if (event == "[DONE]") continue;
    const Json choice = Json::parse(event)["choices"][0];
    texts[choice["index"]] += choice["text"];
  }
  EXPECT_THAT(texts, ElementsAre(testing::Pair(0, "abc def"), testing::Pair(1, "abc def"),
                                 testing::Pair(2, "abc def")));
}

TEST_F(StreamTest, LineSeparatorsDoNotSplitEvents) {
  AnswerWith("a\u2028b\u2029c\rd");
  const auto events = EventsOf(Stream("/v1/completions", CompletionBody()).body);
  std::string text;
  for (const std::string& event : events) {
    EXPECT_EQ(event.find("\u2028"), std::string::npos);
    if (event != "[DONE]") text += Json::parse(event)["choices"][0]["text"];
  }
  EXPECT_EQ(text, "a\u2028b\u2029c\rd");
}

TEST_F(StreamTest, EventsArriveAsTokensCome) {
  Json body = ChatBody();
  body["stream"] = true;
  HttpClient client(port());
  client.SendPost("/v1/chat/completions", body.dump());
  const auto generation = dispatcher_.NextGeneration();
  for (const char* word : {"one", " two", " three"}) {
    generation.Tokens(Ids(word));
    if (std::string(word) == "one") {
      EXPECT_EQ(client.ReadHeaders().status, 200);
    }
    EXPECT_THAT(client.ReadChunk(), HasSubstr(word)) << "before the next token exists";
  }
  EXPECT_TRUE(WaitForMetric("sluice_streams{api=\"http\"}", "1"));
  generation.End(GenerationEnd::kLength);
  EXPECT_THAT(client.ReadChunk(), HasSubstr("\"finish_reason\":\"length\""));
  EXPECT_EQ(client.ReadChunk(), "data: [DONE]\n\n");
  EXPECT_TRUE(WaitForMetric("sluice_streams{api=\"http\"}", "0"));
  EXPECT_TRUE(WaitForMetric("sluice_stream_buffered_bytes{api=\"http\"}", "0"));
}

TEST_F(StreamTest, FailureInTheMiddleIsAnEvent) {
  Json body = ChatBody();
  body["stream"] = true;
  HttpClient client(port());
  client.SendPost("/v1/chat/completions", body.dump());
  const auto generation = dispatcher_.NextGeneration();
  generation.Tokens(Ids("some"));
  EXPECT_EQ(client.ReadHeaders().status, 200);
  EXPECT_THAT(client.ReadChunk(), HasSubstr("some"));
  generation.Fail(absl::InternalError("decode worker d-1 lost during decode"));
  const std::string event = client.ReadChunk();
  const Json error = Json::parse(event.substr(6))["error"];
  EXPECT_EQ(error["type"], "server_error");
  EXPECT_EQ(error["code"], "worker_lost");
  EXPECT_TRUE(error.contains("param"));
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("d-1"));
  EXPECT_EQ(client.ReadChunk(), "data: [DONE]\n\n");
  EXPECT_TRUE(client.WaitForClose(absl::Seconds(5)));
}

TEST_F(StreamTest, Http10EndsWithTheConnection) {
  AnswerWith("old style");
  Json body = CompletionBody();
  body["stream"] = true;
  HttpClient client(port());
  const std::string json = body.dump();
  client.Send(absl::StrCat("POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n",
                           "Content-Length: ", json.size(), "\r\n\r\n", json));
  const HttpReply reply = client.ReadReply();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.count("transfer-encoding"), 0u);
  EXPECT_EQ(EventsOf(reply.body).back(), "[DONE]");
}

}  // namespace
}  // namespace sluice::router
