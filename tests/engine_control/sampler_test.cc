// The sampler, step by step and in distribution.
#include "engine/sampling/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "engine/sampling/exp_weights.h"
#include "engine/sampling/logprobs.h"
#include "engine/sampling/philox.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

SampledToken Sample(const std::vector<float>& logits, const SamplingParams& params, int index = 0,
                    const TokenCounts* counts = nullptr) {
  Sampler sampler(static_cast<int64_t>(logits.size()), static_cast<int64_t>(logits.size()));
  const absl::StatusOr<SampledToken> sampled = sampler.Sample(logits, params, counts, index);
  EXPECT_TRUE(sampled.ok()) << sampled.status();
  return *sampled;
}

// How often each token comes in `num_draws` indices.
std::map<TokenId, int> Draw(const std::vector<float>& logits, SamplingParams params,
                            int num_draws) {
  Sampler sampler(static_cast<int64_t>(logits.size()), static_cast<int64_t>(logits.size()));
  std::map<TokenId, int> draws;
  for (int index = 0; index < num_draws; ++index) {
    ++draws[sampler.Sample(logits, params, nullptr, index)->token];
  }
  return draws;
}

SamplingParams Greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

TEST(PhiloxTest, KnownAnswers) {  // of the authors' Random123
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(
      Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
      ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(ExpWeightsTest, CloseToTheTrueExponential) {
  EXPECT_EQ(DeterministicExp(0), 1.0f);
  EXPECT_EQ(DeterministicExp(-kInfinity), 0.0f);
  EXPECT_EQ(DeterministicExp(-1e30f), 0.0f);
  for (float x = 0; x > -87; x -= 0.00137f) {
    const double expected = std::exp(static_cast<double>(x));
    ASSERT_NEAR(DeterministicExp(x) / expected, 1, 3e-7) << x;
  }
}

TEST(SamplerTest, GreedyTakesTheLargestAndLowestIdOnTies) {
  EXPECT_EQ(Sample({1, 3, 2, 3, 0}, Greedy()).token, 1);
  EXPECT_EQ(Sample({-5, -kInfinity, -5}, Greedy()).token, 0);
  std::vector<float> large(100003, -1.0f);
  large[99999] = 7;
  EXPECT_EQ(Sample(large, Greedy()).token, 99999);
}

TEST(SamplerTest, OnlySampleableIdsAreChosen) {
  Sampler sampler(5, 3);
  SamplingParams params = Greedy();
  params.num_top_logprobs = 5;
  const std::vector<float> logits = {0, 2, 1, 9, 8};
  const SampledToken sampled = *sampler.Sample(logits, params, nullptr, 0);
  EXPECT_EQ(sampled.token, 1);
  ASSERT_EQ(sampled.top.size(), 3u);
  // Of the raw distribution, all five included.
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit);
  EXPECT_NEAR(sampled.logprob, 2 - std::log(sum), 1e-6);
}

TEST(SamplerTest, RefusesBrokenLogits) {
  Sampler sampler(3, 3);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    const std::vector<float> logits = {0, bad, 1};
    EXPECT_EQ(sampler.Sample(logits, Greedy(), nullptr, 0).status().code(),
              absl::StatusCode::kInternal);
  }
  const std::vector<float> nothing(3, -kInfinity);
  EXPECT_FALSE(sampler.Sample(nothing, Greedy(), nullptr, 0).ok());
  SamplingParams masked = Greedy();
  masked.stop_token_ids = {0, 1, 2};
  masked.min_tokens = 1;
  const std::vector<float> logits = {0, 1, 2};
  EXPECT_FALSE(sampler.Sample(logits, masked, nullptr, 0).ok());
  EXPECT_TRUE(sampler.Sample(logits, masked, nullptr, 1).ok());
}

TEST(SamplerTest, LogitBiasAndMinTokens) {
  SamplingParams params = Greedy();
  params.logit_bias = {{0, 3}, {2, -100}};
  EXPECT_EQ(Sample({1, 3, 9}, params).token, 0);
  params = Greedy();
  params.stop_token_ids = {2, 7};
  params.min_tokens = 5;
  EXPECT_EQ(Sample({1, 3, 9}, params, 4).token, 1);
  EXPECT_EQ(Sample({1, 3, 9}, params, 5).token, 2);
}

TEST(SamplerTest, PenaltiesSeeWhatTheyShould) {
  // Prompt 0 1, output 2 2.
  const std::vector<TokenId> tokens = {0, 1, 2, 2};
  const TokenCounts counts(tokens, 2);
  SamplingParams params;
  params.repetition_penalty = 2;
  std::vector<float> logits = {4, -4, 4, 4};
  counts.ApplyPenalties(params, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(2, -8, 2, 4));
  params = SamplingParams();
  params.frequency_penalty = 0.5f;
  params.presence_penalty = 0.25f;
  logits = {4, -4, 4, 4};
  counts.ApplyPenalties(params, absl::MakeSpan(logits));
  EXPECT_THAT(logits, ElementsAre(4, -4, 2.75f, 4));
}

TEST(SamplerTest, LogprobsAreOfTheRawDistribution) {
  SamplingParams params;
  params.temperature = 0.1f;
  params.logit_bias = {{0, -50}};
  params.num_top_logprobs = 3;
  const std::vector<float> logits = {5, 1, 2, 2};
  const SampledToken sampled = Sample(logits, params);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit);
  EXPECT_NEAR(sampled.logprob, logits[static_cast<size_t>(sampled.token)] - std::log(sum), 1e-6);
  ASSERT_EQ(sampled.top.size(), 3u);
  EXPECT_EQ(sampled.top[0].token, 0);
  EXPECT_EQ(sampled.top[1].token, 2);  // the lower id of two equals
  EXPECT_EQ(sampled.top[2].token, 3);
  EXPECT_NEAR(sampled.top[0].logprob, 5 - std::log(sum), 1e-6);

  params.num_top_logprobs = 0;
  EXPECT_TRUE(Sample(logits, params).top.empty());
  EXPECT_NE(Sample(logits, params).logprob, 0);
  params.num_top_logprobs = -1;
  EXPECT_EQ(Sample(logits, params).logprob, 0);
}

TEST(SamplerTest, TopKKeepsExactlyKLowestIdsOnTies) {
  SamplingParams params;
  params.top_k = 2;
  const std::map<TokenId, int> draws = Draw({1, 0, 1, 1, -3}, params, 200);
  ASSERT_EQ(draws.size(), 2u);
  EXPECT_TRUE(draws.contains(0));
  EXPECT_TRUE(draws.contains(2));
  params.top_k = 1;
  params.temperature = 50;
  EXPECT_EQ(Draw({1, 0, 1.0001f, 1, -3}, params, 50).size(), 1u);
  params.top_k = 100;
  EXPECT_EQ(Draw({1, 0, 1.0001f, 1, -3}, params, 500).size(), 5u);
}

TEST(SamplerTest, TopPAndMinPKeepWhatTheySay) {
  // Probabilities 0.5, 0.25, 0.125, 0.125 (ids 1, 3, 0, 2).
  const std::vector<float> logits = {std::log(0.125f), std::log(0.5f), std::log(0.125f),
                                     std::log(0.25f)};
  const auto kept = [&](float top_p, float min_p) {
    SamplingParams params;
    params.top_p = top_p;
    params.min_p = min_p;
    std::vector<TokenId> ids;
    for (const auto& [id, count] : Draw(logits, params, 400)) ids.push_back(id);
    return ids;
  };
  EXPECT_THAT(kept(0.3f, 0), ElementsAre(1));
  EXPECT_THAT(kept(0.6f, 0), ElementsAre(1, 3));
  EXPECT_THAT(kept(0.8f, 0), ElementsAre(0, 1, 3));
  EXPECT_THAT(kept(1.0f, 0), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(kept(1.0f, 0.4f), ElementsAre(1, 3));
  EXPECT_THAT(kept(1.0f, 0.2f), ElementsAre(0, 1, 2, 3));
  // min_p leaves 2/3 and 1/3; top_p is of those.
  EXPECT_THAT(kept(0.6f, 0.4f), ElementsAre(1));
}

TEST(SamplerTest, TinyTemperatureIsGreedy) {
  SamplingParams params;
  params.temperature = 1e-30f;
  EXPECT_THAT(Draw({1, 5, 4.999f}, params, 50), ElementsAre(std::pair(1, 50)));
}

TEST(SamplerTest, SeedAndIndexDecideAlone) {
  std::mt19937 random(7);
  std::vector<float> logits(1000);
  for (float& logit : logits) logit = static_cast<float>(random() % 1000) / 200;
  SamplingParams params;
  params.seed = 42;
  Sampler sampler(1000, 1000);
  std::vector<TokenId> first, second;
  for (int i = 0; i < 50; ++i) first.push_back(sampler.Sample(logits, params, nullptr, i)->token);
  SamplingParams other = params;
  other.top_k = 3;
  for (int i = 49; i >= 0; --i) {  // other order, other work in between
    (void)sampler.Sample(logits, other, nullptr, i);
    second.insert(second.begin(), sampler.Sample(logits, params, nullptr, i)->token);
  }
  EXPECT_EQ(first, second);
  params.seed = 43;
  second.clear();
  for (int i = 0; i < 50; ++i) second.push_back(sampler.Sample(logits, params, nullptr, i)->token);
  EXPECT_NE(first, second);
}

TEST(SamplerTest, ValidationNamesTheField) {
  const auto message = [](auto&& change) {
    SamplingParams params;
    change(params);
    return std::string(ValidateSamplingParams(params, 10).message());
  };
  EXPECT_EQ(message([](SamplingParams&) {}), "");
  EXPECT_THAT(message([](SamplingParams& p) { p.temperature = -1; }), HasSubstr("temperature"));
  EXPECT_THAT(message([](SamplingParams& p) { p.temperature = kInfinity; }),
              HasSubstr("temperature"));
  EXPECT_THAT(message([](SamplingParams& p) { p.top_p = 1.1f; }), HasSubstr("top_p"));
  EXPECT_THAT(message([](SamplingParams& p) { p.top_k = -1; }), HasSubstr("top_k"));
  EXPECT_THAT(message([](SamplingParams& p) { p.min_p = -0.1f; }), HasSubstr("min_p"));
  for (const float penalty : {0.0F, 1.2e-38F}) {
    EXPECT_THAT(message([&](SamplingParams& p) { p.repetition_penalty = penalty; }),
                HasSubstr("repetition_penalty"));
  }
  EXPECT_THAT(message([](SamplingParams& p) {
                p.logit_bias = {{10, 1}};
              }),
              HasSubstr("logit_bias"));
  for (const int32_t count : {-1, 0, kMaxNumTopLogprobs}) {
    EXPECT_EQ(message([&](SamplingParams& p) { p.num_top_logprobs = count; }), "");
  }
  for (const int32_t count : {-2, kMaxNumTopLogprobs + 1, std::numeric_limits<int32_t>::max()}) {
    EXPECT_THAT(message([&](SamplingParams& p) { p.num_top_logprobs = count; }),
                HasSubstr("num_top_logprobs"));
  }
}

}  // namespace
}  // namespace sluice
