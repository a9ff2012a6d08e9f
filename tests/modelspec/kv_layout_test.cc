#include "modelspec/kv_layout.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/modelspec/published_configs.h"

namespace sluice {
namespace {

ModelSpec MustParse(const nlohmann::json& config) { return Parse(config).value(); }

TEST(KvLayoutTest, BytesPerTokenOfThePublishedModels) {
  const nlohmann::json numbers = ReadJson(GoldenData("numbers/model_numbers.json"));
  const std::pair<const char*, nlohmann::json> models[] = {
      {"V2-Lite", DeepseekV2LiteConfig()}, {"V2", DeepseekV2Config()}, {"V3", DeepseekV3Config()}};
  for (const auto& [name, config] : models) {
    const KvLayout layout = MakeKvLayout(MustParse(config), DType::kBF16);
    EXPECT_EQ(layout.bytes_per_token(), numbers[name]["kv_bytes_per_token_bf16"].get<int64_t>());
    EXPECT_EQ(layout.block_bytes(), 64 * layout.bytes_per_token());
    const KvLayout f32 = MakeKvLayout(MustParse(config), DType::kF32);
    EXPECT_EQ(f32.bytes_per_token(), 2 * layout.bytes_per_token());
  }
}

TEST(KvLayoutTest, OneLatentGroup) {
  const KvLayout layout = MakeKvLayout(MustParse(DeepseekV3Config()), DType::kBF16);
  ASSERT_EQ(layout.groups.size(), 1u);
  EXPECT_EQ(layout.groups[0].name, "latent");
  EXPECT_EQ(layout.groups[0].num_layers, 61);
  EXPECT_EQ(layout.groups[0].bytes_per_token_and_layer, 1152);
  EXPECT_STREQ(DTypeName(layout.dtype), "bf16");
}

KvFingerprint Fingerprint(const nlohmann::json& config, DType dtype = DType::kBF16,
                          const std::string& weights = "w", const std::string& kernels = "k",
                          int64_t sampleable_vocab_size = 1000) {
  const ModelSpec spec = MustParse(config);
  return MakeKvFingerprint(spec, MakeKvLayout(spec, dtype), weights, kernels,
                           sampleable_vocab_size);
}

TEST(KvFingerprintTest, SameInputsSameDigest) {
  const KvFingerprint one = Fingerprint(DeepseekV3Config());
  EXPECT_EQ(one.digest.size(), 32u);
  EXPECT_EQ(one.digest, Fingerprint(DeepseekV3Config()).digest);
  EXPECT_NE(one.text.find("kv: bf16 block_tokens=64 latent=61x1152"), std::string::npos)
      << one.text;
}

TEST(KvFingerprintTest, TokensThatEndAnAnswerDoNotMatter) {
  EXPECT_EQ(Fingerprint(DeepseekV3Config()).digest,
            Fingerprint(With(DeepseekV3Config(), {{"eos_token_id", 5}})).digest);
}

TEST(KvFingerprintTest, WhateverChangesTheBytesChangesTheDigest) {
  const nlohmann::json v3 = DeepseekV3Config();
  std::set<std::string> digests = {
      Fingerprint(v3).digest,
      Fingerprint(v3, DType::kF32).digest,
      Fingerprint(v3, DType::kBF16, "other").digest,
      Fingerprint(v3, DType::kBF16, "w", "other").digest,
      Fingerprint(v3, DType::kBF16, "w", "k", 999).digest,
      Fingerprint(Without(v3, {"rope_scaling"})).digest,
      Fingerprint(Without(v3, {"quantization_config"})).digest,
  };
  EXPECT_EQ(digests.size(), 7u);
  size_t expected = digests.size();
  const std::pair<const char*, nlohmann::json> changes[] = {{"vocab_size", 129281},
                                                            {"hidden_size", 7169},
                                                            {"num_hidden_layers", 60},
                                                            {"num_attention_heads", 64},
                                                            {"q_lora_rank", 1537},
                                                            {"kv_lora_rank", 256},
                                                            {"qk_nope_head_dim", 64},
                                                            {"qk_rope_head_dim", 32},
                                                            {"v_head_dim", 64},
                                                            {"intermediate_size", 18433},
                                                            {"n_routed_experts", 128},
                                                            {"n_shared_experts", 2},
                                                            {"num_experts_per_tok", 7},
                                                            {"moe_intermediate_size", 1024},
                                                            {"first_k_dense_replace", 2},
                                                            {"moe_layer_freq", 2},
                                                            {"n_group", 4},
                                                            {"topk_group", 3},
                                                            {"norm_topk_prob", false},
                                                            {"routed_scaling_factor", 2.6},
                                                            {"rms_norm_eps", 1e-5},
                                                            {"rope_theta", 10001},
                                                            {"topk_method", "greedy"}};
  for (const auto& [name, value] : changes) {
    digests.insert(Fingerprint(With(v3, {{name, value}})).digest);
    EXPECT_EQ(digests.size(), ++expected) << name;
  }
  const std::pair<const char*, nlohmann::json> rope_changes[] = {
      {"factor", 41},  {"beta_fast", 33},       {"beta_slow", 2},
      {"mscale", 0.9}, {"mscale_all_dim", 0.9}, {"original_max_position_embeddings", 4097}};
  for (const auto& [name, value] : rope_changes) {
    digests.insert(
        Fingerprint(With(v3, {{"rope_scaling", With(v3["rope_scaling"], {{name, value}})}}))
            .digest);
    EXPECT_EQ(digests.size(), ++expected) << name;
  }
}

}  // namespace
}  // namespace sluice
