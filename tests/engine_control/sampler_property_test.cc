// The sampler against a naive reference in double precision that sorts everything, and its draws
// against the reference's distribution. Failures print the seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "engine/sampling/philox.h"
#include "engine/sampling/sampler.h"

namespace sluice {
namespace {

struct Case {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<TokenId> tokens;
  int num_output_tokens = 0;
};

Case RandomCase(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto uniform = [&random] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  Case result;
  const size_t vocab_size = 1 + random() % (seed % 10 == 0 ? 20000 : 300);
  const double spread = seed % 3 == 0 ? 0.5 : 8;
  const bool ties = seed % 4 == 0;
  for (size_t i = 0; i < vocab_size; ++i) {
    const double logit = (uniform() - 0.5) * 2 * spread;
    result.logits.push_back(static_cast<float>(ties ? std::round(logit) : logit));
  }
  SamplingParams& params = result.params;
  params.seed = random();
  params.temperature = static_cast<float>(0.2 + 2 * uniform());
  if (random() % 2) params.top_k = static_cast<int>(1 + random() % 60);
  if (random() % 2) params.top_p = static_cast<float>(0.05 + 0.94 * uniform());
  if (random() % 3 == 0) params.min_p = static_cast<float>(0.3 * uniform());
  if (random() % 3 == 0) params.repetition_penalty = static_cast<float>(0.7 + uniform());
  if (random() % 3 == 0) params.frequency_penalty = static_cast<float>(uniform() - 0.3);
  if (random() % 3 == 0) params.presence_penalty = static_cast<float>(uniform() - 0.3);
  for (size_t i = 0; i < random() % 4; ++i) {
    params.logit_bias.emplace_back(random() % vocab_size, static_cast<float>(4 * uniform() - 2));
  }
  if (vocab_size > 4 && random() % 3 == 0) {
    params.min_tokens = 1 << 20;
    params.stop_token_ids = {static_cast<TokenId>(random() % vocab_size)};
  }
  const size_t num_tokens = 1 + random() % 40;
  for (size_t i = 0; i < num_tokens; ++i) {
    result.tokens.push_back(static_cast<TokenId>(random() % vocab_size));
  }
  result.num_output_tokens = static_cast<int>(random() % num_tokens);
  return result;
}

// The probability of each token. `is_sharp`: false when a threshold falls so close to a boundary
// that rounding may decide either way.
std::vector<double> ReferenceProbabilities(const Case& test_case, bool* is_sharp) {
  constexpr double kNear = 1e-5;
  const SamplingParams& params = test_case.params;
  std::vector<double> x(test_case.logits.begin(), test_case.logits.end());
  for (const auto& [token, bias] : params.logit_bias) x[static_cast<size_t>(token)] += bias;
  if (params.min_tokens > 0) {
    for (const TokenId token : params.stop_token_ids) {
      x[static_cast<size_t>(token)] = -std::numeric_limits<double>::infinity();
    }
  }
  const size_t num_prompt =
      test_case.tokens.size() - static_cast<size_t>(test_case.num_output_tokens);
  for (size_t id = 0; id < x.size(); ++id) {
    const auto count = [&](size_t begin, size_t end) {
      return std::count(test_case.tokens.begin() + static_cast<int64_t>(begin),
                        test_case.tokens.begin() + static_cast<int64_t>(end),
                        static_cast<TokenId>(id));
    };
    const auto in_output = count(num_prompt, test_case.tokens.size());
    if (in_output + count(0, num_prompt) > 0) {
      x[id] = x[id] > 0 ? x[id] / params.repetition_penalty : x[id] * params.repetition_penalty;
    }
    x[id] -= params.frequency_penalty * static_cast<double>(in_output);
    if (in_output > 0) x[id] -= params.presence_penalty;
  }

  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  const double best = x[order[0]];
  std::vector<double> weights;
  for (const size_t id : order) weights.push_back(std::exp((x[id] - best) / params.temperature));

  *is_sharp = true;
  // Equal logits that went through different arithmetic may differ in the last bit.
  const auto boundary = [&](size_t kept) {
    if (kept == 0 || kept >= order.size()) return;
    const double gap = x[order[kept - 1]] - x[order[kept]];
    if (gap != 0 && gap < kNear) *is_sharp = false;
  };
  size_t kept = order.size();
  if (params.top_k > 0) kept = std::min(kept, static_cast<size_t>(params.top_k));
  boundary(kept);
  size_t kept_by_min_p = 0;
  while (kept_by_min_p < kept && weights[kept_by_min_p] >= params.min_p) ++kept_by_min_p;
  for (const double weight : weights) {
    if (params.min_p > 0 && std::abs(weight - params.min_p) < kNear) *is_sharp = false;
  }
  kept = kept_by_min_p;
  if (params.top_p < 1) {
    const double total =
        std::accumulate(weights.begin(), weights.begin() + static_cast<int64_t>(kept), 0.0);
    double sum = 0;
    for (size_t i = 0; i < kept; ++i) {
      sum += weights[i];
      if (std::abs(sum / total - params.top_p) < kNear) *is_sharp = false;
      if (sum >= params.top_p * total) {
        kept = i + 1;
        break;
      }
    }
    boundary(kept);
  }
  const double total =
      std::accumulate(weights.begin(), weights.begin() + static_cast<int64_t>(kept), 0.0);
  std::vector<double> probabilities(x.size(), 0);
  for (size_t i = 0; i < kept; ++i) probabilities[order[i]] = weights[i] / total;
  return probabilities;
}

TEST(SamplerProperty, NeverDrawsWhatTheReferenceExcludesAndFollowsItsInverseTransform) {
  int num_compared = 0;
  for (uint64_t seed = 1; seed <= 3000; ++seed) {
    SCOPED_TRACE(seed);
    const Case test_case = RandomCase(seed);
    bool is_sharp = false;
    const std::vector<double> probabilities = ReferenceProbabilities(test_case, &is_sharp);
    Sampler sampler(static_cast<int64_t>(test_case.logits.size()),
                    static_cast<int64_t>(test_case.logits.size()));
    const TokenCounts counts(test_case.tokens, test_case.num_output_tokens);
    for (int index = 0; index < 10; ++index) {
      const absl::StatusOr<SampledToken> sampled =
          sampler.Sample(test_case.logits, test_case.params, &counts, index);
      ASSERT_TRUE(sampled.ok()) << sampled.status();
      if (!is_sharp) continue;
      ++num_compared;
      // The uniform number lies in the token's interval of the cumulative distribution.
      double below = 0;
      for (TokenId id = 0; id < sampled->token; ++id) below += probabilities[id];
      const double above = below + probabilities[sampled->token];
      const double u = TokenUniform(test_case.params.seed, static_cast<uint64_t>(index));
      ASSERT_GT(probabilities[sampled->token], 0);
      ASSERT_GE(u, below - 1e-4);
      ASSERT_LE(u, above + 1e-4);
    }
  }
  EXPECT_GT(num_compared, 20000);
}

TEST(SamplerProperty, GreedyIsTheReferencesFirst) {
  for (uint64_t seed = 1; seed <= 2000; ++seed) {
    SCOPED_TRACE(seed);
    Case test_case = RandomCase(seed);
    test_case.params.top_k = 1;
    bool is_sharp = false;
    const std::vector<double> probabilities = ReferenceProbabilities(test_case, &is_sharp);
    if (!is_sharp) continue;
    test_case.params.temperature = 0;
    Sampler sampler(static_cast<int64_t>(test_case.logits.size()),
                    static_cast<int64_t>(test_case.logits.size()));
    const TokenCounts counts(test_case.tokens, test_case.num_output_tokens);
    const SampledToken sampled = *sampler.Sample(test_case.logits, test_case.params, &counts, 0);
    ASSERT_EQ(probabilities[sampled.token], 1);
  }
}

// Chi-square over seeded draws: with the statistic's mean at its degrees of freedom and its
// deviation at sqrt(2 * degrees), five deviations are never seen from a correct sampler with these
// fixed seeds.
TEST(SamplerProperty, DrawsFollowTheDistribution) {
  constexpr int kNumDraws = 20000;
  for (uint64_t seed = 1; seed <= 16; ++seed) {
    SCOPED_TRACE(seed);
    Case test_case = RandomCase(seed * 7 + 1);
    bool is_sharp = false;
    const std::vector<double> probabilities = ReferenceProbabilities(test_case, &is_sharp);
    if (!is_sharp) continue;
    Sampler sampler(static_cast<int64_t>(test_case.logits.size()),
                    static_cast<int64_t>(test_case.logits.size()));
    const TokenCounts counts(test_case.tokens, test_case.num_output_tokens);
    std::vector<int> draws(probabilities.size(), 0);
    for (int i = 0; i < kNumDraws; ++i) {
      // Both ways to get another number: other index, other seed.
      test_case.params.seed = seed << 32 | static_cast<uint64_t>(i / 100);
      ++draws[sampler.Sample(test_case.logits, test_case.params, &counts, i % 100)->token];
    }
    double statistic = 0;
    int num_cells = 0;
    double rare_expected = 0, rare_seen = 0;
    for (size_t id = 0; id < draws.size(); ++id) {
      const double expected = probabilities[id] * kNumDraws;
      if (expected < 10) {
        rare_expected += expected;
        rare_seen += draws[id];
        continue;
      }
      statistic += (draws[id] - expected) * (draws[id] - expected) / expected;
      ++num_cells;
    }
    if (rare_expected >= 10) {
      statistic += (rare_seen - rare_expected) * (rare_seen - rare_expected) / rare_expected;
      ++num_cells;
    }
    const double degrees = std::max(num_cells - 1, 1);
    EXPECT_LT(statistic, degrees + 5 * std::sqrt(2 * degrees)) << num_cells << " cells";
  }
}

}  // namespace
}  // namespace sluice
