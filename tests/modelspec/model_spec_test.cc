// What we read from config files, and the numbers that follow, against independently computed ones.
#include "modelspec/model_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "tests/modelspec/published_configs.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Json = nlohmann::json;

ModelSpec MustParse(const Json& config) {
  absl::StatusOr<ModelSpec> spec = Parse(config);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *spec : ModelSpec();
}

TEST(ModelSpecTest, ReadsDeepseekV3) {
  const ModelSpec spec = MustParse(DeepseekV3Config());
  EXPECT_EQ(spec.architecture, Architecture::kDeepseekV3);
  EXPECT_EQ(spec.vocab_size, 129280);
  EXPECT_EQ(spec.q_lora_rank, 1536);
  EXPECT_EQ(spec.qk_head_dim(), 192);
  EXPECT_EQ(spec.kv_row_dim(), 576);
  EXPECT_EQ(spec.gate, GateKind::kSigmoidNoAuxTc);
  EXPECT_TRUE(spec.norm_topk_prob);
  EXPECT_EQ(spec.routed_scaling_factor, 2.5);
  EXPECT_EQ(spec.num_nextn_predict_layers, 1);
  EXPECT_EQ(spec.quantization, "fp8");
  EXPECT_TRUE(spec.rope_scaling.enabled);
  EXPECT_EQ(spec.bos_token_id, 0);
  EXPECT_THAT(spec.eos_token_ids, ElementsAre(1));
}

TEST(ModelSpecTest, ReadsTheV2Family) {
  const ModelSpec v2 = MustParse(DeepseekV2Config());
  EXPECT_EQ(v2.architecture, Architecture::kDeepseekV2);
  EXPECT_EQ(v2.gate, GateKind::kSoftmaxGroupLimited);
  EXPECT_FALSE(v2.norm_topk_prob);
  EXPECT_EQ(v2.quantization, "");
  EXPECT_EQ(v2.num_nextn_predict_layers, 0);
  const ModelSpec lite = MustParse(DeepseekV2LiteConfig());
  EXPECT_EQ(lite.gate, GateKind::kSoftmaxGreedy);
  EXPECT_EQ(lite.q_lora_rank, 0);
}

TEST(ModelSpecTest, DefaultsFollowTheFamily) {
  const std::initializer_list<const char*> optional = {
      "scoring_func", "topk_method",  "norm_topk_prob", "routed_scaling_factor",
      "n_group",      "topk_group",   "moe_layer_freq", "rope_theta",
      "rms_norm_eps", "hidden_act",   "attention_bias", "tie_word_embeddings",
      "torch_dtype",  "bos_token_id", "eos_token_id"};
  const ModelSpec v3 = MustParse(Without(DeepseekV3Config(), optional));
  EXPECT_EQ(v3.gate, GateKind::kSigmoidNoAuxTc);
  EXPECT_TRUE(v3.norm_topk_prob);
  EXPECT_EQ(v3.routed_scaling_factor, 2.5);
  EXPECT_EQ(v3.n_group, 1);
  EXPECT_EQ(v3.topk_group, 1);
  EXPECT_EQ(v3.moe_layer_freq, 1);
  EXPECT_EQ(v3.rope_theta, 10000);
  EXPECT_EQ(v3.rms_norm_eps, 1e-6);
  EXPECT_EQ(v3.bos_token_id, -1);
  EXPECT_THAT(v3.eos_token_ids, IsEmpty());
  const ModelSpec v2 = MustParse(Without(DeepseekV2Config(), optional));
  EXPECT_EQ(v2.gate, GateKind::kSoftmaxGreedy);
  EXPECT_FALSE(v2.norm_topk_prob);
  EXPECT_EQ(v2.routed_scaling_factor, 1.0);
}

TEST(ModelSpecTest, SigmoidWithoutBiasIsItsOwnGate) {
  const ModelSpec spec = MustParse(With(DeepseekV3Config(), {{"topk_method", "greedy"}}));
  EXPECT_EQ(spec.gate, GateKind::kSigmoidGreedy);
}

TEST(ModelSpecTest, BothSpellingsOfRopeMeanTheSame) {
  const ModelSpec hub = MustParse(With(DeepseekV3Config(), {{"rope_theta", 50000}}));
  Json parameters = DeepseekV3Config()["rope_scaling"];
  parameters.erase("type");
  parameters["rope_type"] = "yarn";
  parameters["rope_theta"] = 50000.0;
  const ModelSpec newer =
      MustParse(With(Without(DeepseekV3Config(), {"rope_scaling", "rope_theta", "torch_dtype"}),
                     {{"rope_parameters", parameters},
                      {"dtype", "bfloat16"},
                      {"qk_head_dim", 192},
                      {"head_dim", 64},
                      {"rope_interleave", true}}));
  EXPECT_EQ(newer.rope_theta, hub.rope_theta);
  EXPECT_EQ(newer.RopeInvFreq(), hub.RopeInvFreq());
  EXPECT_EQ(newer.SoftmaxScale(), hub.SoftmaxScale());
}

TEST(ModelSpecTest, NullRopeScalingIsPlainRope) {
  for (const Json& rope :
       {Json(nullptr), Json({{"type", "default"}}), Json({{"rope_type", "default"}})}) {
    const ModelSpec spec = MustParse(With(DeepseekV3Config(), {{"rope_scaling", rope}}));
    EXPECT_FALSE(spec.rope_scaling.enabled);
    EXPECT_NEAR(spec.SoftmaxScale(), 0.07216878364870322, 1e-16);
    EXPECT_EQ(spec.RopeMagnitude(), 1);
    const std::vector<double> inv_freq = spec.RopeInvFreq();
    ASSERT_EQ(inv_freq.size(), 32u);
    EXPECT_DOUBLE_EQ(inv_freq[0], 1);
    EXPECT_DOUBLE_EQ(inv_freq[16], 0.01);
  }
}

TEST(ModelSpecTest, WithoutMscaleAllDimCosAndSinAreScaledInstead) {
  Json rope = DeepseekV3Config()["rope_scaling"];
  rope.erase("mscale_all_dim");
  const ModelSpec spec = MustParse(With(DeepseekV3Config(), {{"rope_scaling", rope}}));
  EXPECT_NEAR(spec.SoftmaxScale(), 0.07216878364870322, 1e-16);
  EXPECT_NEAR(spec.RopeMagnitude(), 1.3688879454113936, 1e-12);
}

TEST(ModelSpecTest, MoeLayersFollowBothRules) {
  const ModelSpec spec =
      MustParse(With(DeepseekV3Config(), {{"first_k_dense_replace", 3}, {"moe_layer_freq", 2}}));
  std::vector<int64_t> moe;
  for (int64_t layer = 0; layer < 10; ++layer) {
    if (spec.IsMoeLayer(layer)) moe.push_back(layer);
  }
  EXPECT_THAT(moe, ElementsAre(4, 6, 8));
}

TEST(ModelSpecTest, NoRoutedExpertsIsADenseModel) {
  const ModelSpec spec = MustParse(With(DeepseekV3Config(), {{"n_routed_experts", nullptr}}));
  EXPECT_FALSE(spec.IsMoeLayer(60));
  const int64_t norms = 61 * (2 * 7168 + 1536 + 512) + 7168;
  EXPECT_EQ(spec.ActivatedParameters() + norms, spec.TotalParameters());
}

TEST(ModelSpecTest, EndTokensMayBeAListAndAreDeduplicated) {
  EXPECT_THAT(MustParse(With(DeepseekV3Config(), {{"eos_token_id", {1, 5, 1}}})).eos_token_ids,
              ElementsAre(1, 5));
  EXPECT_THAT(MustParse(With(DeepseekV3Config(), {{"eos_token_id", nullptr}})).eos_token_ids,
              IsEmpty());
}

TEST(ModelSpecTest, TheOldNameCountsOnlyWithALatent) {
  const ModelSpec spec =
      MustParse(With(DeepseekV2Config(), {{"architectures", {"DeepseekForCausalLM"}}}));
  EXPECT_EQ(spec.architecture, Architecture::kDeepseekV2);
}

// tests/golden/data/numbers: parameter counts that agree with the published totals, YaRN tables.
class PublishedNumbersTest : public ::testing::TestWithParam<const char*> {
 protected:
  ModelSpec Spec() const {
    const std::string name = GetParam();
    return MustParse(name == "V3"   ? DeepseekV3Config()
                     : name == "V2" ? DeepseekV2Config()
                                    : DeepseekV2LiteConfig());
  }
  Json Numbers() const { return ReadJson(GoldenData("numbers/model_numbers.json"))[GetParam()]; }
};

TEST_P(PublishedNumbersTest, ParametersAndFlops) {
  const ModelSpec spec = Spec();
  const Json numbers = Numbers();
  const auto lm_head = numbers["lm_head_params"].get<int64_t>();
  EXPECT_EQ(spec.TotalParameters(), numbers["params_total"].get<int64_t>());
  EXPECT_EQ(spec.ActivatedParameters() - 2 * lm_head,
            numbers["params_active_layers"].get<int64_t>());
  EXPECT_EQ(spec.FlopsPerToken(), numbers["matmul_flops_per_token"].get<double>() +
                                      numbers["lm_head_flops"].get<double>());
  const auto heads = spec.num_hidden_layers * spec.num_attention_heads;
  EXPECT_EQ(spec.AttentionParityPosition(),
            numbers["params_active_layers"].get<int64_t>() / (heads * (576 + 512)));
}

TEST_P(PublishedNumbersTest, Rope) {
  const ModelSpec spec = Spec();
  const Json numbers = Numbers();
  EXPECT_NEAR(spec.SoftmaxScale(), numbers["softmax_scale"].get<double>(), 1e-15);
  EXPECT_EQ(spec.RopeMagnitude(), 1);
  const auto expected = numbers["yarn"]["inv_freq"].get<std::vector<double>>();
  const std::vector<double> inv_freq = spec.RopeInvFreq();
  ASSERT_EQ(inv_freq.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(inv_freq[i], expected[i], 1e-14 * expected[i]) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, PublishedNumbersTest, ::testing::Values("V2-Lite", "V2", "V3"),
                         [](const auto& info) {
                           return info.index == 0 ? std::string("V2Lite") : std::string(info.param);
                         });

// The seeded checkpoints carry what an independent implementation derived from the same file.
class GoldenCheckpointTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenCheckpointTest, ScaleAndFrequencies) {
  const absl::StatusOr<ModelSpec> spec = LoadModelSpec(GoldenData(GetParam()));
  ASSERT_TRUE(spec.ok()) << spec.status();
  const Json golden = ReadJson(GoldenData(GetParam()) + "/golden.json");
  EXPECT_NEAR(spec->SoftmaxScale(), golden["softmax_scale"].get<double>(), 1e-12);
  const auto expected = golden["inv_freq"].get<std::vector<double>>();
  const std::vector<double> inv_freq = spec->RopeInvFreq();
  ASSERT_EQ(inv_freq.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(inv_freq[i], expected[i], 1e-6 * expected[i]) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, GoldenCheckpointTest,
                         ::testing::Values("tiny-v2", "tiny-v2lite", "tiny-v3", "tiny-v3-fp8",
                                           "tiny-v3-chat"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(LoadModelSpecTest, EveryCheckpointOfTheTreeLoads) {
  for (const char* name : {"dev-v2-lite", "dev-v3", "dev-v3-fp8"}) {
    const absl::StatusOr<ModelSpec> spec = LoadModelSpec(GoldenData(name));
    EXPECT_TRUE(spec.ok()) << spec.status();
  }
  const std::string tiny = SLUICE_SOURCE_DIR "/models/deepseek-tiny";
  const absl::StatusOr<ModelSpec> spec = LoadModelSpec(tiny);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->kv_row_dim(), 576);
  const absl::StatusOr<GenerationDefaults> defaults = LoadGenerationDefaults(tiny);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0.2);
  EXPECT_EQ(defaults->top_p, 0.95);
  EXPECT_EQ(defaults->top_k, 0);
  EXPECT_EQ(defaults->min_p, 0);
  EXPECT_EQ(defaults->repetition_penalty, 1);
}

class ModelFolderTest : public ::testing::Test {
 protected:
  ModelFolderTest() {
    char path[] = "/tmp/sluice-model-XXXXXX";
    dir_ = mkdtemp(path);
  }
  ~ModelFolderTest() override { std::filesystem::remove_all(dir_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ + "/" + name) << text;
  }
  std::string dir_;
};

TEST_F(ModelFolderTest, EndTokensAreTheUnionOfBothFiles) {
  Write("config.json", With(DeepseekV3Config(), {{"eos_token_id", 1}}).dump());
  Write("generation_config.json", R"({"eos_token_id": [7, 1], "do_sample": false, "top_k": -1})");
  const absl::StatusOr<ModelSpec> spec = LoadModelSpec(dir_);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_THAT(spec->eos_token_ids, ElementsAre(1, 7));
  const absl::StatusOr<GenerationDefaults> defaults = LoadGenerationDefaults(dir_);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0);
  EXPECT_EQ(defaults->top_k, 0);
}

TEST_F(ModelFolderTest, SamplingDefaultsAreThoseOfTheFile) {
  Write(
      "generation_config.json",
      R"({"temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1})");
  const absl::StatusOr<GenerationDefaults> defaults = LoadGenerationDefaults(dir_);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0.6);
  EXPECT_EQ(defaults->top_p, 0.9);
  EXPECT_EQ(defaults->top_k, 40);
  EXPECT_EQ(defaults->min_p, 0.05);
  EXPECT_EQ(defaults->repetition_penalty, 1.1);
  for (const char* field : {"min_p", "repetition_penalty"}) {
    Write("generation_config.json", absl::StrCat("{\"", field, "\": -1}"));
    EXPECT_THAT(std::string(LoadGenerationDefaults(dir_).status().message()),
                ::testing::HasSubstr(field));
  }
}

TEST_F(ModelFolderTest, AbsentGenerationConfigMeansDefaults) {
  const absl::StatusOr<GenerationDefaults> defaults = LoadGenerationDefaults(dir_);
  ASSERT_TRUE(defaults.ok());
  EXPECT_EQ(defaults->temperature, 1);
  EXPECT_EQ(defaults->top_p, 1);
}

TEST_F(ModelFolderTest, AFileThatCannotBeOpenedIsNotAbsent) {
  Write("config.json", DeepseekV3Config().dump());
  std::filesystem::create_symlink("generation_config.json", dir_ + "/generation_config.json");
  for (const absl::Status& status :
       {LoadModelSpec(dir_).status(), LoadGenerationDefaults(dir_).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("generation_config.json: "));
  }
}

TEST_F(ModelFolderTest, ErrorsNameTheFile) {
  const absl::Status missing = LoadModelSpec(dir_).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), ::testing::HasSubstr(dir_ + "/config.json"));

  Write("config.json", "{}");
  EXPECT_THAT(std::string(LoadModelSpec(dir_).status().message()),
              ::testing::HasSubstr("config.json: field 'architectures' is missing"));

  Write("config.json", DeepseekV3Config().dump());
  Write("generation_config.json", R"({"temperature": "hot"})");
  for (const absl::Status& status :
       {LoadModelSpec(dir_).status(), LoadGenerationDefaults(dir_).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(
        std::string(status.message()),
        ::testing::HasSubstr("generation_config.json: field 'temperature' must be a number"));
  }

  Write("generation_config.json", R"({"eos_token_id": 129280})");
  EXPECT_THAT(std::string(LoadModelSpec(dir_).status().message()),
              ::testing::HasSubstr("'eos_token_id' is 129280, outside 0 to 129279"));

  Write("config.json", std::string((4 << 20) + 1, ' '));
  EXPECT_THAT(std::string(LoadModelSpec(dir_).status().message()), ::testing::HasSubstr("larger"));
}

}  // namespace
}  // namespace sluice
