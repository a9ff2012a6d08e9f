// What we must not run is refused, and the refusal names the field.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>

#include "tests/modelspec/published_configs.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

struct Refusal {
  const char* name;
  Json config;
  absl::StatusCode code;
  const char* message;  // part of it
};
std::ostream& operator<<(std::ostream& os, const Refusal& refusal) { return os << refusal.name; }

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

Json V3With(const Json& fields) { return With(DeepseekV3Config(), fields); }
Json V3WithRope(const Json& fields) {
  return V3With({{"rope_scaling", With(DeepseekV3Config()["rope_scaling"], fields)}});
}
Json V3WithQuantization(const Json& fields) {
  return V3With({{"quantization_config", With(DeepseekV3Config()["quantization_config"], fields)}});
}

class RefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusalTest, NamesTheField) {
  const absl::Status status = Parse(GetParam().config).status();
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

std::string CaseName(const ::testing::TestParamInfo<Refusal>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(
    Identity, RefusalTest,
    ::testing::Values(
        Refusal{"NoArchitecture", Without(DeepseekV3Config(), {"architectures"}), kInvalid,
                "'architectures' is missing"},
        Refusal{"ArchitectureText", V3With({{"architectures", "DeepseekV3ForCausalLM"}}), kInvalid,
                "'architectures' must be a list of one name"},
        Refusal{"TwoArchitectures", V3With({{"architectures", {"A", "B"}}}), kInvalid,
                "'architectures' must be a list of one name"},
        Refusal{"Llama", V3With({{"architectures", {"LlamaForCausalLM"}}}), kUnimplemented,
                "names 'LlamaForCausalLM'"},
        Refusal{"V32", V3With({{"architectures", {"DeepseekV32ForCausalLM"}}}), kUnimplemented,
                "names 'DeepseekV32ForCausalLM'"},
        Refusal{"V4", V3With({{"architectures", {"DeepseekV4ForCausalLM"}}}), kUnimplemented,
                "names 'DeepseekV4ForCausalLM'"},
        Refusal{"OldDeepseekWithoutLatent",
                Without(V3With({{"architectures", {"DeepseekForCausalLM"}}}), {"kv_lora_rank"}),
                kUnimplemented, "names 'DeepseekForCausalLM'"}),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    Dimensions, RefusalTest,
    ::testing::Values(
        Refusal{"NoVocab", Without(DeepseekV3Config(), {"vocab_size"}), kInvalid,
                "'vocab_size' is missing"},
        Refusal{"NullHidden", V3With({{"hidden_size", nullptr}}), kInvalid,
                "'hidden_size' is missing"},
        Refusal{"TextLayers", V3With({{"num_hidden_layers", "61"}}), kInvalid,
                "'num_hidden_layers' must be an integer"},
        Refusal{"FractionHeads", V3With({{"num_attention_heads", 128.0}}), kInvalid,
                "'num_attention_heads' must be an integer"},
        Refusal{"BoolHeads", V3With({{"num_attention_heads", true}}), kInvalid,
                "'num_attention_heads' must be an integer"},
        Refusal{"ZeroLayers", V3With({{"num_hidden_layers", 0}}), kInvalid,
                "'num_hidden_layers' is 0, outside 1 to"},
        Refusal{"NegativeRank", V3With({{"kv_lora_rank", -512}}), kInvalid,
                "'kv_lora_rank' is -512"},
        Refusal{"ZeroQRank", V3With({{"q_lora_rank", 0}}), kInvalid, "'q_lora_rank' is 0"},
        Refusal{"HugeHidden", V3With({{"hidden_size", 1 << 20}}), kInvalid,
                "'hidden_size' is 1048576, outside"},
        Refusal{"BeyondInt64", V3With({{"intermediate_size", 18446744073709551615ull}}), kInvalid,
                "'intermediate_size' is 18446744073709551615, outside"},
        Refusal{"OddRope", V3With({{"qk_rope_head_dim", 63}}), kInvalid,
                "'qk_rope_head_dim' must be even"},
        Refusal{"LargeRope", V3With({{"qk_rope_head_dim", 514}}), kInvalid,
                "'qk_rope_head_dim' is 514, outside 2 to 512"},
        Refusal{"HeadDimSum", V3With({{"qk_head_dim", 128}}), kInvalid,
                "'qk_head_dim' is not qk_nope_head_dim + qk_rope_head_dim"},
        Refusal{"NoContext", Without(DeepseekV3Config(), {"max_position_embeddings"}), kInvalid,
                "'max_position_embeddings' is missing"},
        Refusal{"ZeroEps", V3With({{"rms_norm_eps", 0}}), kInvalid, "'rms_norm_eps' is 0"},
        Refusal{"TextEps", V3With({{"rms_norm_eps", "1e-6"}}), kInvalid,
                "'rms_norm_eps' must be a number"},
        Refusal{"ManyMtpLayers", V3With({{"num_nextn_predict_layers", 17}}), kInvalid,
                "'num_nextn_predict_layers' is 17"}),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    Experts, RefusalTest,
    ::testing::Values(
        Refusal{"NoTopk", Without(DeepseekV3Config(), {"num_experts_per_tok"}), kInvalid,
                "'num_experts_per_tok' is missing"},
        Refusal{"NoFirstDense", Without(DeepseekV3Config(), {"first_k_dense_replace"}), kInvalid,
                "'first_k_dense_replace' is missing"},
        Refusal{"TopkAboveExperts", V3With({{"num_experts_per_tok", 257}}), kInvalid,
                "'num_experts_per_tok' is 257, outside 1 to 256"},
        Refusal{"GroupsDoNotDivide", V3With({{"n_group", 7}}), kInvalid,
                "'n_group' (7) must divide n_routed_experts (256)"},
        Refusal{"MoreGroupsThanThereAre", V3With({{"topk_group", 9}}), kInvalid,
                "'topk_group' is 9, outside 1 to 8"},
        Refusal{"TopkBeyondItsGroups",
                V3With({{"n_group", 64}, {"topk_group", 1}, {"num_experts_per_tok", 8}}), kInvalid,
                "'num_experts_per_tok' (8) is more than the 4 experts"},
        Refusal{"OneExpertAGroup",
                V3With({{"n_group", 256}, {"topk_group", 8}, {"num_experts_per_tok", 8}}), kInvalid,
                "'n_group' leaves one expert a group"},
        Refusal{"ZeroFrequency", V3With({{"moe_layer_freq", 0}}), kInvalid,
                "'moe_layer_freq' is 0"},
        Refusal{"MoreDenseThanLayers", V3With({{"first_k_dense_replace", 62}}), kInvalid,
                "'first_k_dense_replace' is 62"},
        Refusal{"NormText", V3With({{"norm_topk_prob", "yes"}}), kInvalid,
                "'norm_topk_prob' must be true or false"},
        Refusal{"ZeroScale", V3With({{"routed_scaling_factor", 0}}), kInvalid,
                "'routed_scaling_factor' is 0"},
        Refusal{"UnknownScore", V3With({{"scoring_func", "sqrtsoftplus"}}), kUnimplemented,
                "'scoring_func' is 'sqrtsoftplus'"},
        Refusal{"ScoreNumber", V3With({{"scoring_func", 1}}), kInvalid,
                "'scoring_func' must be a string"},
        Refusal{"UnknownTopk", V3With({{"topk_method", "random"}}), kUnimplemented,
                "'topk_method' is 'random'"},
        Refusal{"SoftmaxWithBias", V3With({{"scoring_func", "softmax"}}), kUnimplemented,
                "'topk_method' 'noaux_tc' together with scoring_func 'softmax'"},
        Refusal{"SigmoidGroupLimited", V3With({{"topk_method", "group_limited_greedy"}}),
                kUnimplemented, "'group_limited_greedy' together with scoring_func 'sigmoid'"}),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    Rope, RefusalTest,
    ::testing::Values(
        Refusal{"NotAnObject", V3With({{"rope_scaling", "yarn"}}), kInvalid,
                "'rope_scaling' must be an object"},
        Refusal{"NoType", V3With({{"rope_scaling", Json::object()}}), kInvalid,
                "'rope_scaling.type' is missing"},
        Refusal{"Linear", V3WithRope({{"type", "linear"}}), kUnimplemented,
                "'rope_scaling.type' is 'linear'"},
        Refusal{"Longrope", V3WithRope({{"type", nullptr}, {"rope_type", "longrope"}}),
                kUnimplemented, "'rope_scaling.rope_type' is 'longrope'"},
        Refusal{"TypesDiffer", V3WithRope({{"rope_type", "default"}}), kInvalid,
                "'rope_scaling.type' 'yarn' contradicts rope_type"},
        Refusal{"BothSpellings", V3With({{"rope_parameters", {{"rope_type", "default"}}}}),
                kInvalid, "'rope_parameters' and rope_scaling are both given"},
        Refusal{"NoFactor", V3WithRope({{"factor", nullptr}}), kInvalid,
                "'rope_scaling.factor' is missing"},
        Refusal{"FactorBelowOne", V3WithRope({{"factor", 0.5}}), kInvalid,
                "'rope_scaling.factor' is 0.5"},
        Refusal{"NoOriginal", V3WithRope({{"original_max_position_embeddings", nullptr}}), kInvalid,
                "'rope_scaling.original_max_position_embeddings' is missing"},
        Refusal{"BetasCrossed", V3WithRope({{"beta_fast", 1}, {"beta_slow", 2}}), kInvalid,
                "'rope_scaling.beta_fast' must not be less"},
        Refusal{"AttentionFactor", V3WithRope({{"attention_factor", 1.0}}), kUnimplemented,
                "'rope_scaling.attention_factor'"},
        Refusal{"NotTruncated", V3WithRope({{"truncate", false}}), kUnimplemented,
                "'rope_scaling.truncate'"},
        Refusal{"ThetaOne", V3With({{"rope_theta", 1}}), kInvalid, "'rope_theta' is 1"},
        Refusal{"ThetaOfParameters",
                With(Without(DeepseekV3Config(), {"rope_scaling"}),
                     {{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", -1}}}}),
                kInvalid, "'rope_parameters.rope_theta' is -1"}),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    Arithmetic, RefusalTest,
    ::testing::Values(
        Refusal{"Gelu", V3With({{"hidden_act", "gelu"}}), kUnimplemented, "'hidden_act' is 'gelu'"},
        Refusal{"AttentionBias", V3With({{"attention_bias", true}}), kUnimplemented,
                "'attention_bias' must be false"},
        Refusal{"TiedEmbeddings", V3With({{"tie_word_embeddings", true}}), kUnimplemented,
                "'tie_word_embeddings' must be false"},
        Refusal{"BiasText", V3With({{"attention_bias", "false"}}), kInvalid,
                "'attention_bias' must be true or false"},
        Refusal{"Float16", V3With({{"torch_dtype", "float16"}}), kUnimplemented,
                "'torch_dtype' is 'float16'"},
        Refusal{"NewSpellingFloat16",
                With(Without(DeepseekV3Config(), {"torch_dtype"}), {{"dtype", "float16"}}),
                kUnimplemented, "'dtype' is 'float16'"},
        Refusal{"DtypesDiffer", V3With({{"dtype", "float32"}}), kInvalid,
                "'dtype' 'float32' contradicts torch_dtype"},
        Refusal{"Awq", V3WithQuantization({{"quant_method", "awq"}}), kUnimplemented,
                "'quantization_config.quant_method' is 'awq'"},
        Refusal{"NoMethod", V3WithQuantization({{"quant_method", nullptr}}), kInvalid,
                "'quantization_config.quant_method' is missing"},
        Refusal{"E5m2", V3WithQuantization({{"fmt", "e5m2"}}), kUnimplemented,
                "'quantization_config.fmt' is 'e5m2'"},
        Refusal{"Static", V3WithQuantization({{"activation_scheme", "static"}}), kUnimplemented,
                "'quantization_config.activation_scheme' is 'static'"},
        Refusal{"Blocks64", V3WithQuantization({{"weight_block_size", {64, 64}}}), kUnimplemented,
                "'quantization_config.weight_block_size' is [64,64]"},
        Refusal{"NoBlocks", V3WithQuantization({{"weight_block_size", nullptr}}), kUnimplemented,
                "'quantization_config.weight_block_size' is missing"},
        Refusal{"QuantizationText", V3With({{"quantization_config", "fp8"}}), kInvalid,
                "'quantization_config' must be an object"}),
    CaseName);

INSTANTIATE_TEST_SUITE_P(
    Tokens, RefusalTest,
    ::testing::Values(Refusal{"BosBeyondVocab", V3With({{"bos_token_id", 129280}}), kInvalid,
                              "'bos_token_id' is 129280, outside 0 to 129279"},
                      Refusal{"EosNegative", V3With({{"eos_token_id", {1, -1}}}), kInvalid,
                              "'eos_token_id' is -1"},
                      Refusal{"EosText", V3With({{"eos_token_id", "</s>"}}), kInvalid,
                              "'eos_token_id' must be an integer"}),
    CaseName);

TEST(ParseModelSpecTest, TextThatIsNoObject) {
  for (const char* text :
       {"", "{", "[]", "null", "{\"a\": 1,}", "{\"a\": 1e999}", "{\"a\": \xff}"}) {
    EXPECT_EQ(ParseModelSpec(text).status().code(), kInvalid) << text;
  }
}

// Half a megabyte of brackets overflows the stack of whoever copies or prints them.
TEST(ParseModelSpecTest, NestingIsBounded) {
  const auto nested = [](size_t levels) {
    return std::string(levels, '[') + std::string(levels, ']');
  };
  for (const char* before :
       {"{\"eos_token_id\":", "{\"quantization_config\":{\"weight_block_size\":"}) {
    const std::string text = before + nested(500'000) + (before[2] == 'q' ? "}}" : "}");
    EXPECT_THAT(std::string(ParseModelSpec(text).status().message()), HasSubstr("64 levels"));
  }
  const std::string keys_below = std::string(100, '[') + "{\"a\":1}" + std::string(100, ']');
  EXPECT_THAT(std::string(ParseModelSpec(keys_below).status().message()), HasSubstr("64 levels"));
  std::string deep = DeepseekV3Config().dump();
  deep.insert(1, "\"unused\":" + nested(64) + ",");
  EXPECT_TRUE(ParseModelSpec(deep).ok()) << ParseModelSpec(deep).status();
}

TEST(ParseModelSpecTest, DuplicateFieldsAtAnyDepth) {
  std::string top = DeepseekV3Config().dump();
  top.insert(1, "\"hidden_size\": 1,");
  EXPECT_THAT(std::string(ParseModelSpec(top).status().message()),
              HasSubstr("field 'hidden_size' is given twice"));
  std::string nested = DeepseekV3Config().dump();
  const size_t at = nested.find("\"rope_scaling\":{") + 16;
  nested.insert(at, "\"factor\": 1,");
  EXPECT_THAT(std::string(ParseModelSpec(nested).status().message()),
              HasSubstr("field 'factor' is given twice"));
}

TEST(ParseModelSpecTest, LargestAllowedDimensionsDoNotOverflow) {
  const absl::StatusOr<ModelSpec> spec = Parse(V3With({{"vocab_size", 1 << 22},
                                                       {"hidden_size", 1 << 16},
                                                       {"num_hidden_layers", 1024},
                                                       {"num_attention_heads", 1024},
                                                       {"q_lora_rank", 1 << 16},
                                                       {"kv_lora_rank", 1 << 16},
                                                       {"qk_nope_head_dim", 4096},
                                                       {"qk_rope_head_dim", 512},
                                                       {"v_head_dim", 4096},
                                                       {"intermediate_size", 1 << 20},
                                                       {"moe_intermediate_size", 1 << 16},
                                                       {"n_routed_experts", 4096},
                                                       {"n_shared_experts", 64},
                                                       {"first_k_dense_replace", 0}}));
  ASSERT_TRUE(spec.ok()) << spec.status();
  // 1024 layers of 4096 + 64 experts of 3 * 2^16 * 2^16, and everything else.
  const double experts = 1024.0 * (4096 + 64) * 3 * 65536.0 * 65536.0;
  EXPECT_GT(static_cast<double>(spec->TotalParameters()), experts);
  EXPECT_LT(static_cast<double>(spec->TotalParameters()), 1.1 * experts);
}

}  // namespace
}  // namespace sluice
