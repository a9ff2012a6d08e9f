// Checking of requests: ranges, defaults, context length, seeds.
#include "services/router/api/plan.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "common/clock.h"
#include "services/router/api/error_table.h"
#include "tests/router_api/api_fixture.h"

namespace sluice::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class PlanTest : public ApiFixture {
 protected:
  static CompletionRequest Prompt(const std::string& text) {
    CompletionRequest request;
    request.prompts = {text};
    request.sampling.max_tokens = 8;
    return request;
  }
  static ChatRequest Hello() {
    ChatRequest request;
    request.messages = {{"user", "Hello there", "", {}}};
    return request;
  }
  // The kind and parameter of the refusal; fails when it is accepted.
  std::pair<ErrorKind, std::string> Refusal(const CompletionRequest& request) {
    const auto plan = PlanCompletion(*context_, request);
    if (plan.ok()) {
      ADD_FAILURE() << "accepted";
      return {ErrorKind::kInternal, ""};
    }
    const ApiError error = ToApiError(plan.status());
    EXPECT_FALSE(error.message.empty());
    return {error.kind, error.param};
  }
};

TEST_F(PlanTest, DefaultsComeFromTheModelNotFromZero) {
  const auto plan = PlanCompletion(*context_, Prompt("one two"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FLOAT_EQ(plan->sampling.temperature, 0.2f);  // generation_config.json
  EXPECT_FLOAT_EQ(plan->sampling.top_p, 0.95f);
  EXPECT_EQ(plan->sampling.top_k, 0);
  EXPECT_EQ(plan->sampling.repetition_penalty, 1);
  EXPECT_EQ(plan->sampling.num_top_logprobs, -1);
  EXPECT_THAT(plan->sampling.stop_token_ids, ElementsAre(eos()));
  EXPECT_EQ(plan->model, "deepseek-tiny");
  EXPECT_EQ(plan->prompts[0].front(), *tokenizer().bos_token_id());
}

TEST_F(PlanTest, EveryRangeIsCheckedAndNamed) {
  struct Case {
    const char* param;
    std::function<void(SamplingRequest*)> set;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  const Case cases[] = {
      {"temperature", [](auto* s) { s->temperature = -0.1; }},
      {"temperature", [&](auto* s) { s->temperature = nan; }},
      {"temperature", [&](auto* s) { s->temperature = inf; }},
      {"top_p", [](auto* s) { s->top_p = 0.0; }},
      {"top_p", [](auto* s) { s->top_p = 1.5; }},
      {"top_k", [](auto* s) { s->top_k = -2; }},
      {"top_k", [](auto* s) { s->top_k = int64_t{1} << 31; }},
      {"min_p", [](auto* s) { s->min_p = 1.01; }},
      {"presence_penalty", [](auto* s) { s->presence_penalty = 2.5; }},
      {"frequency_penalty", [](auto* s) { s->frequency_penalty = -3.0; }},
      {"repetition_penalty", [](auto* s) { s->repetition_penalty = 0.0; }},
      {"repetition_penalty", [](auto* s) { s->repetition_penalty = 1.2e-38; }},
      {"repetition_penalty", [](auto* s) { s->repetition_penalty = 0.009; }},
      {"n", [](auto* s) { s->n = 0; }},
      {"n", [](auto* s) { s->n = -1; }},
      {"n", [](auto* s) { s->n = 17; }},
      {"max_tokens", [](auto* s) { s->max_tokens = 0; }},
      {"max_tokens", [](auto* s) { s->max_tokens = int64_t{1} << 31; }},
      {"min_tokens", [](auto* s) { s->min_tokens = 9; }},
      {"top_logprobs", [](auto* s) { s->logprobs = true, s->top_logprobs = 21; }},
      {"top_logprobs", [](auto* s) { s->top_logprobs = 2; }},
      {"stop", [](auto* s) { s->stop.assign(17, "x"); }},
      {"stop", [](auto* s) { s->stop = {""}; }},
      {"stop", [](auto* s) { s->stop = {std::string(2000, 'x')}; }},
      {"stop_token_ids", [](auto* s) { s->stop_token_ids = {-1}; }},
      {"stop_token_ids", [](auto* s) { s->stop_token_ids = {1 << 30}; }},
      {"logit_bias",
       [](auto* s) {
         s->logit_bias = {{5, 101.0}};
       }},
      {"logit_bias",
       [](auto* s) {
         s->logit_bias = {{-5, 1.0}};
       }},
  };
  for (const Case& c : cases) {
    CompletionRequest request = Prompt("one");
    c.set(&request.sampling);
    EXPECT_EQ(Refusal(request), std::make_pair(ErrorKind::kInvalidRequest, std::string(c.param)));
  }
}

TEST_F(PlanTest, TheTenantIsShort) {
  CompletionRequest request = Prompt("one");
  request.tenant = std::string(256, 's');
  EXPECT_TRUE(PlanCompletion(*context_, request).ok());
  request.tenant += 's';
  EXPECT_EQ(Refusal(request),
            std::make_pair(ErrorKind::kInvalidRequest, std::string("cache_salt")));
  request.api = RequestApi::kGrpc;
  EXPECT_EQ(Refusal(request), std::make_pair(ErrorKind::kInvalidRequest, std::string("tenant")));
}

TEST_F(PlanTest, EdgesOfRangesAreAccepted) {
  CompletionRequest request = Prompt("one");
  SamplingRequest& sampling = request.sampling;
  sampling.temperature = 0;
  sampling.top_p = 1;
  sampling.top_k = -1;
  sampling.min_p = 1;
  sampling.presence_penalty = -2;
  sampling.frequency_penalty = 2;
  sampling.repetition_penalty = 10;
  sampling.n = 16;
  sampling.min_tokens = 8;
  sampling.logprobs = true;
  sampling.top_logprobs = 20;
  sampling.stop.assign(16, "x");
  const auto plan = PlanCompletion(*context_, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->sampling.top_k, 0);
  EXPECT_EQ(plan->sampling.num_top_logprobs, 20);
  EXPECT_EQ(plan->num_choices(), 16);
}

TEST_F(PlanTest, ContextLengthNamesTheLimit) {
  CompletionRequest request = Prompt("one");
  request.sampling.max_tokens = kTestMaxModelLen;
  const auto plan = PlanCompletion(*context_, request);
  ASSERT_FALSE(plan.ok());
  const ApiError error = ToApiError(plan.status());
  EXPECT_EQ(error.kind, ErrorKind::kContextLength);
  EXPECT_THAT(error.message, HasSubstr("maximum context length is 512 tokens"));
  EXPECT_STREQ(error.row().code, "context_length_exceeded");
}

TEST_F(PlanTest, ExactlyFullContextIsAccepted) {
  CompletionRequest request;
  request.prompts = {std::vector<int64_t>(500, 7)};
  request.sampling.max_tokens = 12;
  EXPECT_TRUE(PlanCompletion(*context_, request).ok());
  request.sampling.max_tokens = 13;
  EXPECT_FALSE(PlanCompletion(*context_, request).ok());
  request.sampling.max_tokens.reset();
  const auto plan = PlanCompletion(*context_, request);
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(plan->max_tokens, ElementsAre(12));
}

TEST_F(PlanTest, TheClusterLowersTheContext) {
  ClusterSnapshot snapshot;
  snapshot.max_model_len = 64;
  dispatcher_.SetSnapshot(snapshot);
  CompletionRequest request = Prompt("one");
  request.sampling.max_tokens = 100;
  EXPECT_EQ(Refusal(request).first, ErrorKind::kContextLength);
}

TEST_F(PlanTest, ModelNames) {
  CompletionRequest request = Prompt("one");
  request.model = "org/deepseek-tiny";
  const auto plan = PlanCompletion(*context_, request);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->model, "org/deepseek-tiny");
  request.model = "gpt-4";
  EXPECT_EQ(Refusal(request), std::make_pair(ErrorKind::kModelNotFound, std::string("model")));
}

TEST_F(PlanTest, PromptsTimesChoicesAreBounded) {
  CompletionRequest request;
  request.prompts.assign(129, std::string("a"));
  request.sampling.max_tokens = 1;
  EXPECT_EQ(Refusal(request).second, "prompt");
  request.prompts.assign(16, std::string("a"));
  request.sampling.n = 9;
  EXPECT_EQ(Refusal(request).second, "prompt");
  request.sampling.n = 8;
  EXPECT_TRUE(PlanCompletion(*context_, request).ok());
}

TEST_F(PlanTest, PromptsMustNotBeEmptyOrUnknown) {
  CompletionRequest request;
  EXPECT_EQ(Refusal(request).second, "prompt");
  request.prompts = {std::vector<int64_t>{}};
  EXPECT_EQ(Refusal(request).second, "prompt");
  request.prompts = {std::vector<int64_t>{1, tokenizer().vocab_size()}};
  EXPECT_EQ(Refusal(request).second, "prompt");
}

TEST_F(PlanTest, SeedIsKeptOrRandom) {
  CompletionRequest request = Prompt("one");
  request.sampling.seed = 42;
  EXPECT_EQ(PlanCompletion(*context_, request)->sampling.seed, 42u);
  request.sampling.seed.reset();
  EXPECT_NE(PlanCompletion(*context_, request)->sampling.seed,
            PlanCompletion(*context_, request)->sampling.seed);
}

TEST_F(PlanTest, IgnoreEosKeepsOwnStopTokens) {
  CompletionRequest request = Prompt("one");
  request.sampling.ignore_eos = true;
  request.sampling.stop_token_ids = {9, 7, 9};
  EXPECT_THAT(PlanCompletion(*context_, request)->sampling.stop_token_ids, ElementsAre(7, 9));
}

TEST_F(PlanTest, ControlTokensInChatTextStayText) {
  ChatRequest request = Hello();
  request.messages[0].content = "<｜Assistant｜>";
  const auto plan = PlanChat(*context_, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const TokenId assistant = *tokenizer().AddedTokenId("<｜Assistant｜>");
  // Once: the generation prompt's own.
  EXPECT_EQ(std::count(plan->prompts[0].begin(), plan->prompts[0].end(), assistant), 1);
  EXPECT_EQ(plan->prompts[0].back(), assistant);
}

TEST_F(PlanTest, DeveloperCountsAsSystem) {
  ChatRequest developer = Hello();
  developer.messages.insert(developer.messages.begin(), {"developer", "Be brief.", "", {}});
  ChatRequest system = developer;
  system.messages[0].role = "system";
  EXPECT_EQ(PlanChat(*context_, developer)->prompts, PlanChat(*context_, system)->prompts);
}

TEST_F(PlanTest, BadConversationsNameMessages) {
  ChatRequest request;
  auto plan = PlanChat(*context_, request);
  EXPECT_EQ(ToApiError(plan.status()).param, "messages");
  request = Hello();
  request.messages[0].role = "wizard";
  plan = PlanChat(*context_, request);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(ToApiError(plan.status()).param, "messages");
  EXPECT_EQ(ToApiError(plan.status()).kind, ErrorKind::kInvalidRequest);
}

TEST_F(PlanTest, AnAnswerGoesOnFromItsPrefix) {
  ChatRequest request = Hello();
  const auto without = PlanChat(*context_, request);
  request.messages.push_back({"assistant", "Once upon", "", {}});
  request.continue_final_message = true;
  const auto with = PlanChat(*context_, request);
  ASSERT_TRUE(with.ok()) << with.status();
  std::vector<TokenId> expected = without->prompts[0];
  for (TokenId id : Ids("Once upon")) expected.push_back(id);
  EXPECT_EQ(with->prompts[0], expected);
  request.messages.pop_back();
  EXPECT_FALSE(PlanChat(*context_, request).ok());
}

TEST_F(PlanTest, DeadlineIsBounded) {
  CompletionRequest request = Prompt("one");
  const absl::Time now = MonotonicNow();
  EXPECT_LE(PlanCompletion(*context_, request)->deadline, now + absl::Minutes(31));
  request.deadline = now + absl::Seconds(1);
  EXPECT_EQ(PlanCompletion(*context_, request)->deadline, request.deadline);
}

TEST_F(PlanTest, TokenizeAndDetokenizeAreInverse) {
  TokenizeRequest tokenize;
  tokenize.input = "Grüße, 世界! 🙂";
  tokenize.add_special_tokens = false;
  const auto tokens = Tokenize(*context_, tokenize);
  ASSERT_TRUE(tokens.ok());
  DetokenizeRequest detokenize;
  detokenize.tokens.assign(tokens->begin(), tokens->end());
  EXPECT_EQ(*Detokenize(*context_, detokenize), "Grüße, 世界! 🙂");
  detokenize.tokens = {-3};
  EXPECT_EQ(ToApiError(Detokenize(*context_, detokenize).status()).param, "tokens");
}

TEST_F(PlanTest, MoreIdsThanTheContextAreRefused) {
  DetokenizeRequest detokenize;
  detokenize.tokens.assign(kTestMaxModelLen, Ids("a").front());
  EXPECT_TRUE(Detokenize(*context_, detokenize).ok());
  detokenize.tokens.push_back(-1);  // not even looked at
  const ApiError error = ToApiError(Detokenize(*context_, detokenize).status());
  EXPECT_EQ(error.kind, ErrorKind::kContextLength);
  EXPECT_EQ(error.param, "tokens");
  EXPECT_THAT(error.message, HasSubstr("maximum context length is 512 tokens"));
  CompletionRequest completion;
  completion.prompts.emplace_back(detokenize.tokens);
  EXPECT_EQ(Refusal(completion), std::make_pair(ErrorKind::kContextLength, std::string("prompt")));
}

TEST_F(PlanTest, WhatCannotFitIsRefusedWithoutTokenizing) {
  const int64_t before = tokenizer_->encoded_bytes();
  TokenizeRequest tokenize;
  for (const bool as_chat : {false, true}) {
    const std::string text(8 << 20, ' ');
    if (as_chat) {
      tokenize.input = std::vector<ChatMessage>{{"user", text, "", {}}};
    } else {
      tokenize.input = text;
    }
    const auto tokens = Tokenize(*context_, tokenize);
    ASSERT_FALSE(tokens.ok());
    EXPECT_EQ(ToApiError(tokens.status()).kind, ErrorKind::kContextLength);
  }
  EXPECT_EQ(Refusal(Prompt(std::string(8 << 20, ' '))),
            std::make_pair(ErrorKind::kContextLength, std::string("prompt")));
  ChatRequest chat = Hello();
  chat.messages[0].content = std::string(8 << 20, 'a');
  const auto plan = PlanChat(*context_, chat);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(ToApiError(plan.status()).kind, ErrorKind::kContextLength);
  EXPECT_EQ(ToApiError(plan.status()).param, "messages");
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("maximum context length is 512 tokens"));
  EXPECT_EQ(tokenizer_->encoded_bytes(), before);
}

// What is not refused for its bytes is encoded until it is clear that it does not fit.
TEST_F(PlanTest, APromptIsNotEncodedToItsEndToBeRefused) {
  std::string text;
  while (text.size() < 8 * static_cast<size_t>(kTestMaxModelLen)) text += "once upon a time, ";
  const size_t all = tokenizer().Encode(text, AddedTokens::kIgnore).size();
  ASSERT_GT(all, static_cast<size_t>(kTestMaxModelLen));
  for (const auto& status : {PlanCompletion(*context_, Prompt(text)).status(), [&] {
                               ChatRequest chat = Hello();
                               chat.messages[0].content = text;
                               return PlanChat(*context_, chat).status();
                             }()}) {
    EXPECT_EQ(ToApiError(status).kind, ErrorKind::kContextLength);
    EXPECT_THAT(std::string(status.message()), HasSubstr("you requested at least 5"));
  }
  const std::vector<TokenId> part =
      tokenizer().EncodeUpTo(text, AddedTokens::kIgnore, kTestMaxModelLen);
  EXPECT_GT(part.size(), static_cast<size_t>(kTestMaxModelLen));
  EXPECT_LT(part.size(), static_cast<size_t>(kTestMaxModelLen) + 64);
}

// The longest prompts there are: nothing but the longest token, which is an added one.
TEST_F(PlanTest, WhatFitsIsNeverRefusedForItsBytes) {
  std::string longest;
  for (TokenId id = 0; id < tokenizer().vocab_size(); ++id) {
    const std::string bytes(tokenizer().TokenBytes(id));
    if (bytes.size() > longest.size()) longest = bytes;
  }
  ASSERT_EQ(longest.size(), tokenizer().max_token_bytes());
  std::string text;
  for (int i = 0; i < kTestMaxModelLen - 2; ++i) text += longest;
  CompletionRequest request = Prompt(text);
  request.sampling.max_tokens = 1;
  const auto plan = PlanCompletion(*context_, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->prompts[0].size(), static_cast<size_t>(kTestMaxModelLen - 1));  // with BOS
}

// The format drops what earlier answers thought, however much it was.
TEST_F(PlanTest, TextThatTheFormatLeavesOutDoesNotCount) {
  ChatRequest chat = Hello();
  chat.messages.push_back(
      {"assistant", "<think>" + std::string(1 << 20, 'a') + "</think>Yes.", "", {}});
  chat.messages.push_back({"user", "And?", "", {}});
  const auto plan = PlanChat(*context_, chat);
  EXPECT_TRUE(plan.ok()) << plan.status();
}

TEST_F(PlanTest, ARequestWhoseDeadlineHasPassedIsNotTokenized) {
  const int64_t before = tokenizer_->encoded_bytes();
  CompletionRequest request = Prompt("late");
  request.deadline = MonotonicNow() - absl::Milliseconds(1);
  EXPECT_EQ(Refusal(request).first, ErrorKind::kDeadline);
  EXPECT_EQ(tokenizer_->encoded_bytes(), before);
}

}  // namespace
}  // namespace sluice::router
