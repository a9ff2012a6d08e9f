// Bodies that are no JSON, or not what a field takes.
#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "tests/router_api/http_fixture.h"

namespace sluice::router {
namespace {

using testing::HasSubstr;
using testing::Not;

class HostileBodyTest : public HttpFixture {};

TEST_F(HostileBodyTest, MalformedJson) {
  const std::string deep_array = std::string(100000, '[');
  std::string deep_object;
  for (int i = 0; i < 200; ++i) deep_object += "{\"a\":";
  const std::string bodies[] = {
      "",
      " ",
      "{",
      "nonsense",
      "[]",
      "\"text\"",
      "null",
      "{\"a\":1,}",
      "{'a':1}",
      "{\"prompt\":\"x\"} trailing",
      "{\"prompt\":\"x\",\"temperature\":NaN}",
      "{\"prompt\":\"x\",\"temperature\":Infinity}",
      "{\"prompt\":\"x\",\"temperature\":1e309}",
      "{\"prompt\":\"x\",\"seed\":99999999999999999999999}",
      "{\"prompt\":\"x\",\"max_tokens\":01}",
      "{\"prompt\":\"\xff\xfe\"}",
      "{\"prompt\":\"\xc0\xaf\"}",            // overlong
      "{\"prompt\":\"\xed\xa0\x80\"}",        // surrogate
      "{\"prompt\":\"\\ud800\"}",             // lone escape
      "{\"prompt\":\"a\nb\"}",                // raw control character
      "\xEF\xBB\xBF{\"prompt\":\"x\"",        // byte order mark, cut
      "{\"prompt\":\"x\",\"prompt\":\"y\"}",  // twice
      "{\"prompt\":\"x\",\"stream_options\":{\"include_usage\":true,\"include_usage\":false}}",
      "{\"prompt\":\"x\",\"pro\\u006dpt\":\"y\"}",  // twice, once escaped
      deep_array,
      deep_object,
      "{\"prompt\":\"x\",\"a\":" + std::string(40, '[') + std::string(40, ']') + "}",
  };
  for (const std::string& body : bodies) {
    const HttpReply reply = PostRaw("/v1/completions", body);
    EXPECT_EQ(reply.status, 400) << body.substr(0, 80);
    EXPECT_EQ(ErrorCode(reply), "invalid_request") << body.substr(0, 80);
  }
  EXPECT_EQ(dispatcher_.num_submitted(), 0);
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(HostileBodyTest, AnUnpairedSurrogateIsCalledSo) {
  for (const char* text :
       {"\\ud800", "\\uDC00", "a\\ud83dz", "\\ud83d\\ud83d\\ude00", "\\ud83d\\n", "\\\\\\ud83d"}) {
    const HttpReply reply = PostRaw("/v1/completions", absl::StrCat("{\"prompt\":\"", text, "\"}"));
    EXPECT_EQ(reply.status, 400) << text;
    EXPECT_THAT(reply.body, HasSubstr("unpaired surrogate")) << text;
  }
  for (const char* text : {"\\x", "\\ud83d\\ude00\\x", "\\\\ud83d\\x"}) {
    const HttpReply reply = PostRaw("/v1/completions", absl::StrCat("{\"prompt\":\"", text, "\"}"));
    EXPECT_EQ(reply.status, 400) << text;
    EXPECT_THAT(reply.body, Not(HasSubstr("surrogate"))) << text;
  }
}

TEST_F(HostileBodyTest, WrongTypesNameTheirField) {
  const std::pair<const char*, const char*> cases[] = {
      {"model", "5"},
      {"temperature", "\"0.5\""},
      {"temperature", "true"},
      {"top_p", "[1]"},
      {"top_k", "1.5"},
      {"n", "\"2\""},
      {"n", "true"},
      {"max_tokens", "1e300"},
      {"max_tokens", "{}"},
      {"seed", "\"x\""},
      {"seed", "1.5"},
      {"stop", "5"},
      {"stop", "[null]"},
      {"stop_token_ids", "[\"a\"]"},
      {"stop_token_ids", "7"},
      {"logit_bias", "[]"},
      {"logit_bias", "{\"x\":1}"},
      {"logit_bias", "{\"5\":\"1\"}"},
      {"logit_bias", "{\"99999999999999999999\":1}"},
      {"stream", "\"yes\""},
      {"stream", "1"},
      {"stream_options", "true"},
      {"echo", "\"true\""},
      {"logprobs", "true"},
      {"ignore_eos", "0"},
      {"cache_salt", "1"},
  };
  for (const auto& [field, value] : cases) {
    const HttpReply reply =
        PostRaw("/v1/completions", absl::StrCat("{\"prompt\":\"x\",\"", field, "\":", value, "}"));
    EXPECT_EQ(reply.status, 400) << field << ": " << value;
    EXPECT_EQ(Json::parse(reply.body)["error"]["param"], field) << value;
  }
}

TEST_F(HostileBodyTest, HugeNumbersAreOutOfRangeNotWrapped) {
  for (const char* value : {"-1", "0", "17", "2147483648", "4294967297", "9223372036854775807",
                            "-9223372036854775808", "1e18"}) {
    const HttpReply reply =
        PostRaw("/v1/completions", absl::StrCat("{\"prompt\":\"x\",\"n\":", value, "}"));
    EXPECT_EQ(reply.status, 400) << value;
    EXPECT_EQ(Json::parse(reply.body)["error"]["param"], "n") << value;
  }
  // Token ids near 2^32 must not become small ones.
  EXPECT_EQ(PostRaw("/v1/completions", "{\"prompt\":[4294967301]}").status, 400);
  EXPECT_EQ(PostRaw("/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":4294967297}").status, 400);
}

TEST_F(HostileBodyTest, NulAndControlCharactersAreJustText) {
  AnswerWith("x");
  EXPECT_EQ(PostRaw("/v1/completions", "{\"prompt\":\"a\\u0000b\\u001f\"}").status, 200);
}

TEST_F(HostileBodyTest, MediaTypes) {
  AnswerWith("x");
  const std::string json = CompletionBody().dump();
  const auto post_as = [&](const std::string& header) {
    HttpClient client(port());
    client.Send(absl::StrCat("POST /v1/completions HTTP/1.1\r\nHost: t\r\n", header,
                             "Content-Length: ", json.size(), "\r\n\r\n", json));
    return client.ReadReply();
  };
  EXPECT_EQ(post_as("").status, 200);
  EXPECT_EQ(post_as("Content-Type: application/json; charset=utf-8\r\n").status, 200);
  EXPECT_EQ(post_as("Content-Type: Application/JSON\r\n").status, 200);
  const HttpReply form = post_as("Content-Type: application/x-www-form-urlencoded\r\n");
  EXPECT_EQ(form.status, 415);
  EXPECT_EQ(ErrorCode(form), "unsupported_media_type");
}

}  // namespace
}  // namespace sluice::router
