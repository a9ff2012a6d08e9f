// The OpenAI surface over real sockets: every endpoint, streaming and not, as clients read it.
#include <gmock/gmock.h>

#include <limits>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/router_api/http_fixture.h"

namespace sluice::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class HttpApiTest : public HttpFixture {};

TEST_F(HttpApiTest, ChatAnswer) {
  AnswerWith("Hi there.");
  const HttpReply reply = Post("/v1/chat/completions", ChatBody(), "x-request-id: my-id-7\r\n");
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(reply.headers.at("content-type"), "application/json");
  EXPECT_EQ(reply.headers.at("x-request-id"), "my-id-7");
  absl::Time date;
  std::string why;
  ASSERT_TRUE(absl::ParseTime("%a, %d %b %Y %H:%M:%S GMT", reply.headers.at("date"), &date, &why))
      << why;
  EXPECT_LT(absl::AbsDuration(absl::Now() - date), absl::Minutes(1));
  const Json json = Json::parse(reply.body);
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["id"], "chatcmpl-my-id-7");
  EXPECT_EQ(json["model"], "deepseek-tiny");
  EXPECT_TRUE(json["created"].is_number_integer());
  const Json& choice = json["choices"][0];
  EXPECT_EQ(choice["index"], 0);
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"], "Hi there.");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_TRUE(choice["logprobs"].is_null());
  const Json& usage = json["usage"];
  const int completion = static_cast<int>(Ids("Hi there.").size()) + 1;
  EXPECT_EQ(usage["completion_tokens"], completion);
  EXPECT_EQ(usage["total_tokens"], usage["prompt_tokens"].get<int>() + completion);
  EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], 2);
  EXPECT_EQ(usage["prompt_cache_hit_tokens"], 2);
  EXPECT_EQ(usage["prompt_cache_miss_tokens"], usage["prompt_tokens"].get<int>() - 2);
  EXPECT_EQ(usage["completion_tokens_details"]["reasoning_tokens"], 0);
}

TEST_F(HttpApiTest, PathsWithoutV1AreTheSame) {
  AnswerWith("ok");
  EXPECT_EQ(Post("/chat/completions", ChatBody()).status, 200);
  EXPECT_EQ(Post("/completions", CompletionBody()).status, 200);
  EXPECT_EQ(Get("/models").status, 200);
  EXPECT_EQ(Get("/models/deepseek-tiny").status, 200);
  EXPECT_EQ(Get("/v1/health").status, 404);
}

TEST_F(HttpApiTest, CompletionAnswerWithEchoAndTwoPrompts) {
  AnswerWith(" end");
  Json body = CompletionBody();
  body["prompt"] = {"one", "two"};
  body["echo"] = true;
  body["n"] = 2;
  const Json json = Json::parse(Post("/v1/completions", body).body);
  EXPECT_EQ(json["object"], "text_completion");
  ASSERT_EQ(json["choices"].size(), 4u);
  EXPECT_EQ(json["choices"][1]["text"], "one end");
  EXPECT_EQ(json["choices"][2]["text"], "two end");
  EXPECT_EQ(json["choices"][3]["index"], 3);
}

TEST_F(HttpApiTest, PromptForms) {
  AnswerWith("x");
  for (const Json& prompt :
       {Json("text"), Json({"a"}), Json({5, 6, 7}), Json::array({{5, 6}, {7}})}) {
    Json body = CompletionBody();
    body["prompt"] = prompt;
    EXPECT_EQ(Post("/v1/completions", body).status, 200) << prompt;
  }
  for (const Json& prompt : {Json(), Json(7), Json::array(), Json({"a", 5}),
                             Json::array({{5}, "a"}), Json::array({Json::array({"a"})}),
                             Json::array({nullptr}), Json::object(), Json({5, 1.5})}) {
    Json body = CompletionBody();
    body["prompt"] = prompt;
    const HttpReply reply = Post("/v1/completions", body);
    EXPECT_EQ(reply.status, 400) << prompt;
    EXPECT_EQ(Json::parse(reply.body)["error"]["param"], "prompt") << prompt;
  }
}

TEST_F(HttpApiTest, CompletionsDefaultToSixteenTokens) {
  Json body = CompletionBody();
  body.erase("max_tokens");
  HttpClient client(port());
  client.SendPost("/v1/completions", body.dump());
  const auto generation = dispatcher_.NextGeneration();
  EXPECT_EQ(generation.spec().sampling.max_tokens, 16);
  EXPECT_EQ(generation.spec().api, RequestApi::kOpenAi);
  generation.End(GenerationEnd::kLength);
  EXPECT_EQ(Json::parse(client.ReadReply().body)["choices"][0]["finish_reason"], "length");
}

TEST_F(HttpApiTest, EveryHonouredSamplingFieldArrives) {
  Json body = ChatBody();
  body.update({{"temperature", 0.5},
               {"top_p", 0.25},
               {"top_k", 7},
               {"min_p", 0.125},
               {"presence_penalty", 1},
               {"frequency_penalty", -1},
               {"repetition_penalty", 1.5},
               {"seed", -1},
               {"max_tokens", 5},
               {"max_completion_tokens", 9.0},
               {"min_tokens", 2},
               {"ignore_eos", true},
               {"stop_token_ids", {11}},
               {"logit_bias", {{"12", -100}}},
               {"logprobs", true},
               {"top_logprobs", 3},
               {"cache_salt", "tenant-a"}});
  HttpClient client(port());
  client.SendPost("/v1/chat/completions", body.dump());
  const auto generation = dispatcher_.NextGeneration();
  const SamplingParams& sampling = generation.spec().sampling;
  EXPECT_FLOAT_EQ(sampling.temperature, 0.5f);
  EXPECT_FLOAT_EQ(sampling.top_p, 0.25f);
  EXPECT_EQ(sampling.top_k, 7);
  EXPECT_FLOAT_EQ(sampling.min_p, 0.125f);
  EXPECT_FLOAT_EQ(sampling.presence_penalty, 1);
  EXPECT_FLOAT_EQ(sampling.frequency_penalty, -1);
  EXPECT_FLOAT_EQ(sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(sampling.seed, ~uint64_t{0});
  EXPECT_EQ(sampling.max_tokens, 9);  // max_completion_tokens wins
  EXPECT_EQ(sampling.min_tokens, 2);
  EXPECT_THAT(sampling.stop_token_ids, ElementsAre(11));
  ASSERT_EQ(sampling.logit_bias.size(), 1u);
  EXPECT_EQ(sampling.logit_bias[0], std::make_pair(12, -100.0f));
  EXPECT_EQ(sampling.num_top_logprobs, 3);
  EXPECT_EQ(generation.spec().tenant_salt, "tenant-a");
  generation.End(GenerationEnd::kLength);
  EXPECT_EQ(client.ReadReply().status, 200);
}

TEST_F(HttpApiTest, NullAnywhereAndUnknownFieldsAreIgnored) {
  AnswerWith("x");
  Json body = ChatBody();
  for (const char* key :
       {"temperature", "top_p", "n", "stop", "stream", "stream_options", "logprobs", "seed",
        "tools", "tool_choice", "response_format", "max_tokens", "logit_bias", "user",
        "top_logprobs", "reasoning_effort", "thinking", "chat_template_kwargs", "modalities"}) {
    body[key] = nullptr;
  }
  body["messages"][0]["name"] = nullptr;
  body["store"] = true;
  body["metadata"] = {{"a", "b"}};
  body["service_tier"] = "auto";
  body["prompt_cache_key"] = "k";
  body["something_new"] = {1, {{"x", nullptr}}};
  body["tools"] = Json::array();
  const HttpReply reply = Post("/v1/chat/completions", body);
  EXPECT_EQ(reply.status, 200) << reply.body;
}

TEST_F(HttpApiTest, UnservedFeaturesAreRefusedByName) {
  const std::pair<const char*, Json> cases[] = {
      {"tools", Json::array({{{"type", "function"}, {"function", {{"name", "f"}}}}})},
      {"tool_choice", "required"},
      {"response_format", {{"type", "json_object"}}},
      {"modalities", {"text", "audio"}},
      {"audio", {{"voice", "x"}}},
      {"web_search_options", {{"a", 1}}},
      {"guided_json", {{"type", "object"}}},
      {"best_of", 3},
  };
  for (const auto& [field, value] : cases) {
    Json body = ChatBody();
    body[field] = value;
    const HttpReply reply = Post("/v1/chat/completions", body);
    EXPECT_EQ(reply.status, 400) << field;
    const Json error = Json::parse(reply.body)["error"];
    EXPECT_EQ(error["param"], field);
    EXPECT_EQ(error["code"], "unsupported");
  }
  Json body = CompletionBody();
  body["suffix"] = "tail";
  EXPECT_EQ(Post("/v1/completions", body).status, 400);
}

TEST_F(HttpApiTest, ARefusalSaysWhatToDo) {
  for (const auto& [field, value] :
       {std::pair<const char*, Json>{"tools", Json::array({{{"type", "function"}}})},
        {"response_format", {{"type", "json_object"}}},
        {"response_format", {{"type", "json_schema"}, {"json_schema", Json::object()}}}}) {
    Json body = ChatBody();
    body[field] = value;
    EXPECT_THAT(Post("/v1/chat/completions", body).body,
                HasSubstr("not supported in this version; omit it"))
        << value;
  }
}

TEST_F(HttpApiTest, ToolsThatAreNotToBeUsedAreIgnored) {
  AnswerWith("x");
  Json body = ChatBody();
  body["tools"] = Json::array({{{"type", "function"}, {"function", {{"name", "f"}}}}});
  body["tool_choice"] = "auto";
  EXPECT_EQ(Post("/v1/chat/completions", body).status, 400);
  body["tool_choice"] = "none";
  EXPECT_EQ(Post("/v1/chat/completions", body).status, 200);
  body = ChatBody();
  body["functions"] = Json::array({{{"name", "f"}}});
  body["function_call"] = "none";
  EXPECT_EQ(Post("/v1/chat/completions", body).status, 200);
}

TEST_F(HttpApiTest, MaxCompletionTokensBoundsACompletionToo) {
  for (const bool with_max_tokens : {false, true}) {
    Json body = CompletionBody();
    body.erase("max_tokens");
    if (with_max_tokens) body["max_tokens"] = 5;
    body["max_completion_tokens"] = 3;
    HttpClient client(port());
    client.SendPost("/v1/completions", body.dump());
    const auto generation = dispatcher_.NextGeneration();
    EXPECT_EQ(generation.spec().sampling.max_tokens, 3);
    generation.End(GenerationEnd::kLength);
  }
}

TEST_F(HttpApiTest, TheFieldThatWasSentIsBlamed) {
  const auto blamed = [this](const char* path, Json body, const char* field, int value) {
    body[field] = value;
    const HttpReply reply = Post(path, body);
    EXPECT_EQ(reply.status, 400);
    const Json error = Json::parse(reply.body)["error"];
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(field));
    return error["param"].get<std::string>();
  };
  EXPECT_EQ(blamed("/v1/chat/completions", ChatBody(), "max_completion_tokens", 0),
            "max_completion_tokens");
  EXPECT_EQ(blamed("/v1/chat/completions", ChatBody(), "max_tokens", 0), "max_tokens");
  EXPECT_EQ(blamed("/v1/completions", CompletionBody(), "max_completion_tokens", 0),
            "max_completion_tokens");
  EXPECT_EQ(blamed("/v1/completions", CompletionBody(), "logprobs", 50), "logprobs");
}

TEST_F(HttpApiTest, MessageForms) {
  AnswerWith("x");
  const Json good[] = {
      {{"role", "user"},
       {"content",
        Json::array({{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}})}},
      {{"role", "developer"}, {"content", "be kind"}},
      {{"role", "assistant"},
       {"content", Json::array({{{"type", "refusal"}, {"refusal", "I would rather not."}}})}},
      {{"role", "system"}, {"content", ""}},
  };
  for (const Json& message : good) {
    Json body = ChatBody();
    body["messages"].insert(body["messages"].begin(), message);
    EXPECT_EQ(Post("/v1/chat/completions", body).status, 200) << message;
  }
  // A history with tools is rendered, though new calls are not made.
  Json body = ChatBody("Weather?");
  body["messages"].push_back(
      {{"role", "assistant"},
       {"content", nullptr},
       {"tool_calls", Json::array({{{"id", "c1"},
                                    {"type", "function"},
                                    {"function", {{"name", "get"}, {"arguments", "{}"}}}}})}});
  body["messages"].push_back({{"role", "tool"}, {"tool_call_id", "c1"}, {"content", "sunny"}});
  EXPECT_EQ(Post("/v1/chat/completions", body).status, 200);

  const Json bad[] = {
      Json("text"),
      {{"content", "no role"}},
      {{"role", 5}, {"content", "x"}},
      {{"role", "user"}},
      {{"role", "user"}, {"content", 5}},
      {{"role", "user"}, {"content", Json::array({{{"type", "image_url"}}})}},
      {{"role", "user"}, {"content", Json::array({{{"type", "text"}}})}},
      {{"role", "user"},
       {"content", Json::array({{{"type", "refusal"}, {"refusal", "not the user's"}}})}},
      {{"role", "assistant"}, {"content", Json::array({{{"type", "refusal"}}})}},
      {{"role", "assistant"}, {"tool_calls", Json::array({{{"id", "x"}}})}},
      {{"role", "nobody"}, {"content", "x"}},
  };
  for (const Json& message : bad) {
    Json request = ChatBody();
    request["messages"] = Json::array({message});
    const HttpReply reply = Post("/v1/chat/completions", request);
    EXPECT_EQ(reply.status, 400) << message;
    EXPECT_THAT(Json::parse(reply.body)["error"]["param"].get<std::string>(),
                HasSubstr("messages"));
  }
}

TEST_F(HttpApiTest, ChatLogprobs) {
  const std::vector<TokenId> fox = Ids("🦊");
  const TokenId a = Ids("a")[0];
  dispatcher_.SetScript([=](const FakeDispatcher::Generation& generation) {
    generation.Sampled({{a, -0.25f, {{a, -0.25f}, {fox[0], -2.5f}}}});
    generation.Sampled(
        {{fox[0], -1.5f, {{fox[0], -1.5f}, {a, -std::numeric_limits<float>::infinity()}}}});
    generation.End(GenerationEnd::kLength);
  });
  Json body = ChatBody();
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const Json json = Json::parse(Post("/v1/chat/completions", body).body);
  const Json& content = json["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 2u);
  EXPECT_EQ(content[0]["token"], "a");
  EXPECT_EQ(content[0]["logprob"], -0.25);
  EXPECT_EQ(content[0]["bytes"], Json({97}));
  EXPECT_EQ(content[0]["top_logprobs"].size(), 2u);
  // Half a character: its raw bytes are there, its text is the replacement character.
  std::vector<int> raw;
  for (unsigned char byte : tokenizer().TokenBytes(fox[0])) raw.push_back(byte);
  EXPECT_EQ(content[1]["bytes"], Json(raw));
  EXPECT_EQ(content[1]["top_logprobs"][1]["logprob"], -9999.0);
}

TEST_F(HttpApiTest, CompletionLogprobs) {
  const std::vector<TokenId> ids = Ids("é b");
  dispatcher_.SetScript([=](const FakeDispatcher::Generation& generation) {
    for (TokenId id : ids) generation.Sampled({{id, -0.5f, {{id, -0.5f}}}});
    generation.End(GenerationEnd::kLength);
  });
  Json body = CompletionBody();
  body["logprobs"] = 1;
  const Json json = Json::parse(Post("/v1/completions", body).body);
  const Json& logprobs = json["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), ids.size());
  EXPECT_EQ(logprobs["token_logprobs"].size(), ids.size());
  EXPECT_EQ(logprobs["top_logprobs"].size(), ids.size());
  EXPECT_EQ(logprobs["text_offset"][0], 0);
  // Offsets count characters, not bytes.
  EXPECT_EQ(logprobs["text_offset"].back().get<int>(),
            3 - static_cast<int>(logprobs["tokens"].back().get<std::string>().size()));
}

// Sampling does not always choose one of the best; clients look the chosen token up all the same.
TEST_F(HttpApiTest, CompletionLogprobsHoldTheChosenToken) {
  const TokenId a = Ids("a")[0];
  const TokenId b = Ids("b")[0];
  dispatcher_.SetScript([=](const FakeDispatcher::Generation& generation) {
    generation.Sampled({{b, -3.5f, {{a, -0.25f}}}});
    generation.Sampled({{a, -0.25f, {{a, -0.25f}}}});
    generation.End(GenerationEnd::kLength);
  });
  Json body = CompletionBody();
  body["logprobs"] = 1;
  const Json json = Json::parse(Post("/v1/completions", body).body);
  const Json& top = json["choices"][0]["logprobs"]["top_logprobs"];
  EXPECT_EQ(top[0], Json({{"a", -0.25}, {"b", -3.5}}));
  EXPECT_EQ(top[1], Json({{"a", -0.25}}));
}

TEST_F(HttpApiTest, SkippedSpecialTokensTakeNoPlaceInTheText) {
  const TokenId a = Ids("a")[0];
  const TokenId bos = *tokenizer().bos_token_id();
  ASSERT_TRUE(tokenizer().IsSpecial(bos));
  dispatcher_.SetScript([=](const FakeDispatcher::Generation& generation) {
    for (TokenId id : {a, bos, a}) generation.Sampled({{id, -0.5f, {}}});
    generation.End(GenerationEnd::kLength);
  });
  Json body = CompletionBody();
  body["logprobs"] = 0;
  const auto offsets = [&] {
    const Json choice = Json::parse(Post("/v1/completions", body).body)["choices"][0];
    return std::make_pair(choice["text"].get<std::string>(), choice["logprobs"]["text_offset"]);
  };
  EXPECT_EQ(offsets(), std::make_pair(std::string("aa"), Json({0, 1, 1})));
  body["skip_special_tokens"] = false;
  const int bos_chars = 21;  // <｜begin▁of▁sentence｜>
  EXPECT_EQ(offsets().second, Json({0, 1, 1 + bos_chars}));
}

TEST_F(HttpApiTest, StopStringsAndReasons) {
  AnswerWith("keep this STOP drop this");
  Json body = ChatBody();
  body["stop"] = "STOP";
  Json json = Json::parse(Post("/v1/chat/completions", body).body);
  EXPECT_EQ(json["choices"][0]["message"]["content"], "keep this ");
  EXPECT_EQ(json["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(json["choices"][0]["stop_reason"], "STOP");
  body["stop"] = {"zzz", "this"};
  body["include_stop_str_in_output"] = true;
  json = Json::parse(Post("/v1/chat/completions", body).body);
  EXPECT_EQ(json["choices"][0]["message"]["content"], "keep this");
}

TEST_F(HttpApiTest, ReasoningContent) {
  const std::vector<TokenId> ids =
      tokenizer().Encode("<think>\nhmm\n</think>\n\nYes.", AddedTokens::kMatch);
  dispatcher_.SetScript([=](const FakeDispatcher::Generation& generation) {
    for (TokenId id : ids) generation.Tokens({id});
    generation.End(GenerationEnd::kStop);
  });
  const Json json = Json::parse(Post("/v1/chat/completions", ChatBody()).body);
  EXPECT_EQ(json["choices"][0]["message"]["content"], "Yes.");
  EXPECT_EQ(json["choices"][0]["message"]["reasoning_content"], "hmm");
  EXPECT_GT(json["usage"]["completion_tokens_details"]["reasoning_tokens"].get<int>(), 0);

  Json body = ChatBody();
  body["stream"] = true;
  std::string reasoning, content;
  for (const std::string& event : EventsOf(Post("/v1/chat/completions", body).body)) {
    if (event == "[DONE]") break;
    const Json delta = Json::parse(event)["choices"][0]["delta"];
    if (delta.contains("reasoning_content")) reasoning += delta["reasoning_content"];
    if (delta.contains("content") && !delta["content"].is_null()) content += delta["content"];
  }
  EXPECT_EQ(reasoning, "hmm");
  EXPECT_EQ(content, "Yes.");
}

TEST_F(HttpApiTest, ReturnTokenIds) {
  AnswerWith("one two");
  Json body = CompletionBody();
  body["return_token_ids"] = true;
  const Json json = Json::parse(Post("/v1/completions", body).body);
  std::vector<TokenId> expected = Ids("one two");
  expected.push_back(eos());
  EXPECT_EQ(json["choices"][0]["token_ids"], Json(expected));
  EXPECT_EQ(json["choices"][0]["prompt_token_ids"].size(),
            json["usage"]["prompt_tokens"].get<size_t>());
}

TEST_F(HttpApiTest, Models) {
  const Json list = Json::parse(Get("/v1/models").body);
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 2u);
  EXPECT_EQ(list["data"][0]["id"], "deepseek-tiny");
  EXPECT_EQ(list["data"][0]["root"], "deepseek-tiny");        // vllm bench reads it
  EXPECT_EQ(list["data"][1]["root"], list["data"][1]["id"]);  // never a path of ours
  EXPECT_EQ(list["data"][0]["max_model_len"], kTestMaxModelLen);
  EXPECT_EQ(Json::parse(Get("/v1/models/org/deepseek-tiny").body)["id"], "org/deepseek-tiny");
  EXPECT_EQ(Json::parse(Get("/v1/models/org%2Fdeepseek-tiny").body)["id"], "org/deepseek-tiny");
  const HttpReply missing = Get("/v1/models/%ff%00nope");
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(Json::parse(missing.body)["error"]["code"], "model_not_found");
}

TEST_F(HttpApiTest, TokenizeAndDetokenize) {
  Json reply = Json::parse(Post("/tokenize", {{"prompt", "héllo"}}).body);
  EXPECT_EQ(reply["count"], reply["tokens"].size());
  EXPECT_EQ(reply["max_model_len"], kTestMaxModelLen);
  EXPECT_EQ(reply["tokens"][0], *tokenizer().bos_token_id());
  reply = Json::parse(Post("/tokenize", {{"prompt", "héllo"}, {"add_special_tokens", false}}).body);
  EXPECT_EQ(reply["tokens"], Json(Ids("héllo")));
  EXPECT_EQ(Json::parse(Post("/detokenize", {{"tokens", reply["tokens"]}}).body)["prompt"],
            "héllo");

  Json chat = ChatBody();
  const auto tokens = Json::parse(Post("/tokenize", chat).body)["tokens"];
  EXPECT_EQ(tokens.back(), *tokenizer().AddedTokenId("<｜Assistant｜>"));
  chat["add_generation_prompt"] = false;
  EXPECT_EQ(Json::parse(Post("/tokenize", chat).body)["tokens"].size(), tokens.size() - 1);

  EXPECT_EQ(Post("/tokenize", Json::object()).status, 400);
  EXPECT_EQ(Post("/detokenize", {{"tokens", {"a"}}}).status, 400);
  EXPECT_EQ(Post("/detokenize", {{"tokens", {1 << 30}}}).status, 400);
}

TEST_F(HttpApiTest, HealthFollowsReadiness) {
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Get("/readyz").status, 200);
  EXPECT_TRUE(Json::parse(Get("/version").body)["version"].is_string());
  dispatcher_.SetNotReadyReason("no decode worker is ready");
  const HttpReply reply = Get("/health");
  EXPECT_EQ(reply.status, 503);
  EXPECT_THAT(reply.body, HasSubstr("no decode worker is ready"));
  EXPECT_EQ(Get("/readyz").status, 503);
  EXPECT_EQ(Get("/livez").status, 200);
  // A models list must answer while workers load.
  EXPECT_EQ(Get("/v1/models").status, 200);
}

TEST_F(HttpApiTest, ErrorsOfTheDispatcher) {
  struct Case {
    absl::Status status;
    std::optional<absl::Duration> retry_after;
    int http;
    const char* code;
    const char* should_retry;
    const char* retry_header;
  };
  const Case cases[] = {
      {absl::ResourceExhaustedError("queue"), absl::Milliseconds(2500), 429, "queue_full", "true",
       "3"},
      {absl::UnavailableError("no worker"), std::nullopt, 503, "no_capacity", "true", "2"},
      {absl::DeadlineExceededError("late"), std::nullopt, 504, "deadline_exceeded", "false", ""},
      {absl::InternalError("prefill worker p-0 lost"), std::nullopt, 500, "worker_lost", "true",
       ""},
  };
  for (const Case& c : cases) {
    for (const bool stream : {false, true}) {
      Json body = ChatBody();
      body["stream"] = stream;
      HttpClient client(port());
      client.SendPost("/v1/chat/completions", body.dump());
      dispatcher_.NextGeneration().Fail(c.status, c.retry_after);
      HttpReply reply = client.ReadReply();
      EXPECT_EQ(reply.status, c.http);
      EXPECT_EQ(Json::parse(reply.body)["error"]["code"], c.code);
      EXPECT_EQ(reply.headers["x-should-retry"], c.should_retry);
      EXPECT_EQ(reply.headers["retry-after"], c.retry_header);
      if (c.retry_after.has_value()) {
        EXPECT_EQ(reply.headers["retry-after-ms"], "2500");
      }
    }
  }
}

TEST_F(HttpApiTest, UnknownModelAndTooLong) {
  Json body = ChatBody();
  body["model"] = "gpt-4";
  HttpReply reply = Post("/v1/chat/completions", body);
  EXPECT_EQ(reply.status, 404);
  EXPECT_EQ(Json::parse(reply.body)["error"]["code"], "model_not_found");
  EXPECT_EQ(reply.headers.at("x-should-retry"), "false");
  body = ChatBody();
  body["max_tokens"] = 600;
  reply = Post("/v1/chat/completions", body);
  EXPECT_EQ(reply.status, 400);
  EXPECT_THAT(reply.body, HasSubstr("maximum context length is 512 tokens"));
  EXPECT_EQ(dispatcher_.num_submitted(), 0);
}

TEST_F(HttpApiTest, KeepAliveServesManyRequests) {
  AnswerWith("x");
  HttpClient client(port());
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(client.Post("/v1/chat/completions", ChatBody().dump()).status, 200);
    Json body = CompletionBody();
    body["stream"] = true;
    EXPECT_TRUE(client.Post("/v1/completions", body.dump()).complete);
    EXPECT_EQ(client.Get("/health").status, 200);
  }
}

TEST_F(HttpApiTest, MetricsCountRoutesAndCodes) {
  AnswerWith("x");
  Post("/v1/chat/completions", ChatBody());
  Post("/chat/completions", ChatBody());
  Get("/nowhere");
  const std::string text = MetricsText();
  EXPECT_THAT(
      text, HasSubstr("sluice_http_requests_total{code=\"200\",route=\"/v1/chat/completions\"} 2"));
  EXPECT_THAT(text, HasSubstr("sluice_http_requests_total{code=\"404\",route=\"other\"} 1"));
  EXPECT_THAT(text, HasSubstr("sluice_http_requests_total{code=\"503\",route=\"/health\"} 0"));
  EXPECT_THAT(text, HasSubstr("sluice_request_stage_duration_seconds_count{stage=\"parse\"} 2"));
}

}  // namespace
}  // namespace sluice::router
