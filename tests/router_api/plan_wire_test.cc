// What the planner accepts, the wire carries and the sampler takes: a plan that only the router
// understands would be a request that nobody answers.
#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <random>

#include "engine/sampling/sampler.h"
#include "services/router/api/plan.h"
#include "services/rpc/fleet_codec.h"
#include "sluice/v1/fleet.pb.h"
#include "tests/router_api/api_fixture.h"

namespace sluice::router {
namespace {

class PlanWireTest : public ApiFixture {
 protected:
  // Whether the planner accepts it; then it must pass everything after the planner.
  bool IsAccepted(const SamplingRequest& sampling) {
    CompletionRequest request;
    request.prompts = {std::vector<int64_t>{7, 8, 9}};
    request.sampling = sampling;
    request.sampling.max_tokens = 8;
    const auto plan = PlanCompletion(*context_, request);
    if (!plan.ok()) return false;
    rpc::SequenceAttempt order;
    order.request.bytes[0] = 1;
    order.attempt = Attempt(1);
    order.tokens = plan->prompts[0];
    order.sampling = plan->sampling;
    order.sampling.max_tokens = plan->max_tokens[0];
    v1::Run proto;
    rpc::Encode(order, &proto);
    v1::Run received;
    EXPECT_TRUE(received.ParseFromString(proto.SerializeAsString()));
    const auto decoded = rpc::Decode(received);
    EXPECT_TRUE(decoded.ok()) << decoded.status();
    if (!decoded.ok()) return true;
    const absl::Status valid = ValidateSamplingParams(decoded->sampling, tokenizer().vocab_size());
    EXPECT_TRUE(valid.ok()) << valid;
    ExpectSamples(decoded->sampling);
    return true;
  }

  // Finite logits of any published model's size give a token.
  void ExpectSamples(const SamplingParams& params) {
    const int64_t vocab_size = tokenizer().vocab_size();
    std::vector<float> logits(static_cast<size_t>(vocab_size));
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 97) - 40.0F;
    logits[7] = 1e30F;
    TokenCounts counts(std::vector<TokenId>{7, 8, 9, 7}, /*num_output_tokens=*/1);
    Sampler sampler(vocab_size, vocab_size);
    const auto sampled = sampler.Sample(logits, params, &counts, 3);
    EXPECT_TRUE(sampled.ok()) << sampled.status();
  }
};

using Field = std::optional<double> SamplingRequest::*;
constexpr Field kFields[] = {
    &SamplingRequest::temperature,
    &SamplingRequest::top_p,
    &SamplingRequest::min_p,
    &SamplingRequest::presence_penalty,
    &SamplingRequest::frequency_penalty,
    &SamplingRequest::repetition_penalty,
};

TEST_F(PlanWireTest, EdgesOfEveryNumber) {
  using Limits = std::numeric_limits<float>;
  int accepted = 0;
  for (const Field field : kFields) {
    for (const double size :
         {0.0,  1e-320,     1e-46, 1e-45,      1e-40, 1.1e-38,   1.2e-38, 1e-30,
          1e-9, 9.99999e-7, 1e-6,  0.00999999, 0.01,  0.5,       1.0,     1.0000001,
          2.0,  2.0000001,  10.0,  10.000001,  100.0, 100.00001, 1e30,    double{Limits::max()},
          1e300}) {
      for (const double value :
           {size, -size, std::nextafter(size, 1e308), std::nextafter(size, -1e308)}) {
        SamplingRequest sampling;
        sampling.*field = value;
        accepted += IsAccepted(sampling) ? 1 : 0;
      }
    }
  }
  EXPECT_GT(accepted, 100);
}

TEST_F(PlanWireTest, TinyNumbersAreGivenAMeaningOrRefused) {
  SamplingRequest sampling;
  sampling.top_p = 1e-40;  // the best token, as any top_p below its probability says
  EXPECT_TRUE(IsAccepted(sampling));
  sampling.repetition_penalty = 1.2e-38;  // a positive logit divided by it is infinite
  EXPECT_FALSE(IsAccepted(sampling));
  sampling.repetition_penalty = 0.01;
  EXPECT_TRUE(IsAccepted(sampling));
  sampling.logit_bias = {{5, 1e-40}, {6, -100}, {7, 100}};
  EXPECT_TRUE(IsAccepted(sampling));
  sampling.logit_bias = {{5, 100.00001}};
  EXPECT_FALSE(IsAccepted(sampling));
}

TEST_F(PlanWireTest, RandomMixtures) {
  std::mt19937_64 random(20240229);
  const auto number = [&] {
    // Any exponent, many of them small; now and then negative.
    const double exponent = std::uniform_real_distribution<double>(-60, 4)(random);
    const double value = std::pow(10.0, random() % 2 == 0 ? exponent : exponent / 20);
    return random() % 8 == 0 ? -value : value;
  };
  int accepted = 0;
  for (int i = 0; i < 2000; ++i) {
    SamplingRequest sampling;
    for (const Field field : kFields) {
      if (random() % 4 == 0) sampling.*field = number();
    }
    if (random() % 4 == 0) sampling.top_k = static_cast<int64_t>(random() % 300) - 1;
    if (random() % 8 == 0) sampling.logit_bias.emplace_back(random() % 300, number());
    if (random() % 8 == 0) {
      sampling.logprobs = true;
      sampling.top_logprobs = static_cast<int64_t>(random() % 21);
    }
    accepted += IsAccepted(sampling) ? 1 : 0;
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 1990);
}

}  // namespace
}  // namespace sluice::router
