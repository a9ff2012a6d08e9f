// Logits and greedy tokens of the whole model against references computed by two independent
// implementations (tests/golden/data/README.md has their origin and the tolerances).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/device/bf16.h"
#include "engine/device/cpu/isa.h"
#include "tests/engine_compute/model_harness.h"

namespace sluice {
namespace {

using nlohmann::json;

constexpr float kLogitTolerance = 2e-4f;  // fp32 against the reference
constexpr float kExcusableGap = 1e-3f;    // below it the second token is as good
constexpr double kMinCosineBf16 = 0.999;
constexpr float kSafeGapBf16 = 2;  // greedy tokens of the trained model in bf16

json ReadJson(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  return json::parse(file);
}

std::vector<std::string> Isas() {
  std::vector<std::string> names;
  for (Isa isa : AvailableIsas()) names.push_back(IsaName(isa));
  return names;
}

float MaxAbsDiff(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float diff = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    diff = std::max(diff, std::abs(a[i] - b[i]));
  }
  return diff;
}

double Cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += double{a[i]} * b[i];
    aa += double{a[i]} * a[i];
    bb += double{b[i]} * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

// Greedy tokens must be those of the reference, up to the first step where two were equally good.
void ExpectGreedy(const std::vector<GreedyStep>& steps, const std::vector<TokenId>& expected) {
  ASSERT_EQ(steps.size(), expected.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].token != expected[i] && steps[i].gap < kExcusableGap) return;
    ASSERT_EQ(steps[i].token, expected[i]) << "step " << i << ", gap " << steps[i].gap;
  }
}

struct Case {
  std::string checkpoint;
  std::string isa;
};
std::string CaseName(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.checkpoint + "_" + info.param.isa;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
std::vector<Case> Cases(const std::vector<std::string>& checkpoints) {
  std::vector<Case> cases;
  for (const std::string& checkpoint : checkpoints) {
    for (const std::string& isa : Isas()) cases.push_back({checkpoint, isa});
  }
  return cases;
}

// ---- tiny-*: all logits of one prompt -----------------------------------------------------------

class TinyGolden : public testing::TestWithParam<Case> {};

TEST_P(TinyGolden, Fp32LogitsAndGreedyTokens) {
  const json golden = ReadJson(GoldenDir(GetParam().checkpoint) + "/golden.json");
  LoadedModel loaded =
      LoadModelForTest(GoldenDir(GetParam().checkpoint), DType::kF32, GetParam().isa, 2, 4);
  ASSERT_NE(loaded.model, nullptr);
  TestSequence sequence = MakeSequence(golden["prompt"].get<std::vector<TokenId>>(), 128);
  const auto logits = RunAllLogits(loaded, sequence);
  const auto expected = golden["logits_per_position"].get<std::vector<std::vector<float>>>();
  ASSERT_EQ(logits.size(), expected.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    EXPECT_LT(MaxAbsDiff(logits[i], expected[i]), kLogitTolerance) << "position " << i;
  }
  const auto continuation = golden["greedy_continuation"].get<std::vector<TokenId>>();
  TestSequence again = MakeSequence(sequence.tokens, 128);
  ExpectGreedy(Greedy(loaded, again, static_cast<int>(continuation.size())), continuation);
}

TEST_P(TinyGolden, SoftmaxScaleAndFrequencies) {
  const json golden = ReadJson(GoldenDir(GetParam().checkpoint) + "/golden.json");
  const auto spec = LoadModelSpec(GoldenDir(GetParam().checkpoint));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_NEAR(spec->SoftmaxScale(), golden["softmax_scale"].get<double>(), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(All, TinyGolden,
                         testing::ValuesIn(Cases({"tiny-v2lite", "tiny-v2", "tiny-v3",
                                                  "tiny-v3-chat", "tiny-v3-fp8"})),
                         CaseName);

// ---- dev-* and the trained model: several prompts, longer, with top logits ----------------------

class PromptGolden : public testing::TestWithParam<Case> {
 protected:
  static bool Trained() { return GetParam().checkpoint == "deepseek-tiny"; }
  static std::string ModelDir() {
    return Trained() ? TinyModelDir() : GoldenDir(GetParam().checkpoint);
  }
  static json Golden() {
    return ReadJson(Trained() ? GoldenDir("deepseek-tiny.json")
                              : GoldenDir(GetParam().checkpoint) + "/golden.json");
  }
  static int Room(const json& prompt) {
    return static_cast<int>(prompt["ids"].size() + prompt["greedy"].size());
  }
};

TEST_P(PromptGolden, Fp32LogitsAndGreedyTokens) {
  const json golden = Golden();
  LoadedModel loaded = LoadModelForTest(ModelDir(), DType::kF32, GetParam().isa, 2, 64);
  ASSERT_NE(loaded.model, nullptr);
  for (const json& prompt : golden["prompts"]) {
    SCOPED_TRACE(prompt["name"].get<std::string>());
    const auto ids = prompt["ids"].get<std::vector<TokenId>>();
    TestSequence sequence = MakeSequence(ids, Room(prompt));
    const auto logits = RunAllLogits(loaded, sequence);
    for (const json& position : prompt["positions"]) {
      const std::vector<float>& row = logits.at(position["pos"].get<size_t>());
      for (const json& entry : position["top"]) {
        EXPECT_NEAR(row.at(entry[0].get<size_t>()), entry[1].get<float>(), kLogitTolerance)
            << "position " << position["pos"] << ", token " << entry[0];
      }
      double sum = 0;
      for (float logit : row) sum += std::exp(double{logit});
      EXPECT_NEAR(std::log(sum), position["logsumexp"].get<double>(), kLogitTolerance);
      if (position.contains("logits")) {
        EXPECT_LT(MaxAbsDiff(row, position["logits"].get<std::vector<float>>()), kLogitTolerance);
      }
    }
    const auto greedy = prompt["greedy"].get<std::vector<TokenId>>();
    TestSequence again = MakeSequence(ids, Room(prompt));
    ExpectGreedy(Greedy(loaded, again, static_cast<int>(greedy.size())), greedy);
  }
}

TEST_P(PromptGolden, Fp32CacheRows) {
  const json golden = Golden();
  LoadedModel loaded = LoadModelForTest(ModelDir(), DType::kF32, GetParam().isa, 2, 64);
  ASSERT_NE(loaded.model, nullptr);
  const json& prompt = golden["prompts"][0];
  TestSequence sequence = MakeSequence(prompt["ids"].get<std::vector<TokenId>>(), Room(prompt));
  RunAllLogits(loaded, sequence);
  const int last = sequence.computed - 1;
  const int64_t latent = loaded.spec.kv_lora_rank;
  for (const json& expected : prompt["cache_last_position"]) {
    const int64_t layer = expected["layer"].get<int64_t>();
    if (layer >= loaded.spec.num_hidden_layers) continue;  // the MTP layer's own cache
    const float* row = reinterpret_cast<const float*>(loaded.kv->Layer(
                           sequence.blocks[static_cast<size_t>(last / 64)], layer)) +
                       last % 64 * loaded.spec.kv_row_dim();
    double squares = 0;
    for (int64_t i = 0; i < latent; ++i) squares += double{row[i]} * row[i];
    EXPECT_NEAR(std::sqrt(squares), expected["latent_l2"].get<double>(), 1e-4);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_NEAR(row[i], expected["latent_first4"][i].get<float>(), 1e-4);
      EXPECT_NEAR(row[latent + static_cast<int64_t>(i)],
                  expected["rope_key_first4"][i].get<float>(), 1e-4);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, PromptGolden,
    testing::ValuesIn(Cases({"dev-v2-lite", "dev-v3", "dev-v3-fp8", "deepseek-tiny"})), CaseName);

// ---- bf16 ---------------------------------------------------------------------------------------

class TinyBf16 : public testing::TestWithParam<Case> {};

// Random models flip experts in bf16 near ties, which turns single positions (and what follows
// them); most must be close, and none unrelated.
TEST_P(TinyBf16, MostPositionsPointTheSameWay) {
  const json golden = ReadJson(GoldenDir(GetParam().checkpoint) + "/golden.json");
  LoadedModel loaded =
      LoadModelForTest(GoldenDir(GetParam().checkpoint), DType::kBF16, GetParam().isa, 2, 4);
  ASSERT_NE(loaded.model, nullptr);
  TestSequence sequence = MakeSequence(golden["prompt"].get<std::vector<TokenId>>(), 128);
  const auto logits = RunAllLogits(loaded, sequence);
  const auto expected = golden["logits_per_position"].get<std::vector<std::vector<float>>>();
  size_t close = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double cosine = Cosine(logits[i], expected[i]);
    close += cosine > kMinCosineBf16 ? 1 : 0;
    EXPECT_GT(cosine, 0.5) << "position " << i;
  }
  EXPECT_GE(close * 2, logits.size()) << close << " of " << logits.size();
}

INSTANTIATE_TEST_SUITE_P(
    All, TinyBf16, testing::ValuesIn(Cases({"tiny-v2lite", "tiny-v2", "tiny-v3", "tiny-v3-chat"})),
    CaseName);

class TrainedBf16 : public testing::TestWithParam<std::string> {};

TEST_P(TrainedBf16, SameGreedyTokensWhereTheModelIsSure) {
  const json golden = ReadJson(GoldenDir("deepseek-tiny.json"));
  LoadedModel loaded = LoadModelForTest(TinyModelDir(), DType::kBF16, GetParam(), 2, 64);
  ASSERT_NE(loaded.model, nullptr);
  int checked = 0;
  for (const json& prompt : golden["prompts"]) {
    SCOPED_TRACE(prompt["name"].get<std::string>());
    const auto gaps = prompt["gaps"].get<std::vector<float>>();
    if (*std::min_element(gaps.begin(), gaps.end()) <= kSafeGapBf16) continue;
    ++checked;
    const auto greedy = prompt["greedy"].get<std::vector<TokenId>>();
    TestSequence sequence = MakeSequence(prompt["ids"].get<std::vector<TokenId>>(),
                                         static_cast<int>(prompt["ids"].size() + greedy.size()));
    std::vector<TokenId> tokens;
    for (const GreedyStep& step : Greedy(loaded, sequence, static_cast<int>(greedy.size()))) {
      tokens.push_back(step.token);
    }
    EXPECT_EQ(tokens, greedy);
  }
  EXPECT_GE(checked, 9);  // those that tests/golden/data/README.md lists
}

INSTANTIATE_TEST_SUITE_P(All, TrainedBf16, testing::ValuesIn(Isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace sluice
