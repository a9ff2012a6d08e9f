// The fields of the published config.json files that we read, and helpers to vary them. For tests.
#pragma once

#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "modelspec/model_spec.h"

namespace sluice {

// Values of DeepSeek-V3-0324 and R1.
inline nlohmann::json DeepseekV3Config() {
  return nlohmann::json::parse(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "attention_bias": false, "hidden_act": "silu", "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "rms_norm_eps": 1e-06, "vocab_size": 129280, "hidden_size": 7168,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "n_group": 8, "topk_group": 4,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": true,
    "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1, "rope_theta": 10000,
    "max_position_embeddings": 163840, "bos_token_id": 0, "eos_token_id": 1,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
      "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
      "weight_block_size": [128, 128]}
  })");
}

// `base` with fields replaced; a JSON null writes null. `Without` takes fields away.
inline nlohmann::json With(nlohmann::json base, const nlohmann::json& fields) {
  for (const auto& [name, value] : fields.items()) base[name] = value;
  return base;
}
inline nlohmann::json Without(nlohmann::json base, std::initializer_list<const char*> names) {
  for (const char* name : names) base.erase(name);
  return base;
}

inline nlohmann::json DeepseekV2Config() {
  return With(Without(DeepseekV3Config(), {"quantization_config", "num_nextn_predict_layers"}),
              nlohmann::json::parse(R"({
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "vocab_size": 102400, "hidden_size": 5120, "num_hidden_layers": 60,
    "first_k_dense_replace": 1, "intermediate_size": 12288, "moe_intermediate_size": 1536,
    "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "n_group": 8, "topk_group": 3, "scoring_func": "softmax",
    "topk_method": "group_limited_greedy", "norm_topk_prob": false,
    "routed_scaling_factor": 16.0, "bos_token_id": 100000, "eos_token_id": 100001,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
      "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096}
  })"));
}

inline nlohmann::json DeepseekV2LiteConfig() {
  return With(DeepseekV2Config(), nlohmann::json::parse(R"({
    "hidden_size": 2048, "num_hidden_layers": 27, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_attention_heads": 16, "q_lora_rank": null,
    "n_routed_experts": 64, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
    "routed_scaling_factor": 1.0
  })"));
}

inline nlohmann::json ReadJson(const std::string& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

inline std::string GoldenData(const std::string& name) {
  return std::string(SLUICE_SOURCE_DIR "/tests/golden/data/") + name;
}

inline absl::StatusOr<ModelSpec> Parse(const nlohmann::json& config) {
  return ParseModelSpec(config.dump());
}

}  // namespace sluice
