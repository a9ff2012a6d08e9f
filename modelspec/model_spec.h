// What a checkpoint's config.json says, checked, and nothing guessed: every dimension the engine
// uses derives from here. Plain data, immutable after loading; any thread.
//
// Field names are the checkpoint's own. Supported: DeepseekV2ForCausalLM, DeepseekV3ForCausalLM.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

enum class Architecture { kDeepseekV2, kDeepseekV3 };

// The four gates of the family (DeepSeek-V2 paper section 2.2, DeepSeek-V3 report section 2.1.2).
enum class GateKind {
  kSoftmaxGreedy,        // V2-Lite
  kSoftmaxGroupLimited,  // V2: best group by its largest score
  kSigmoidGreedy,        // sigmoid scores, no bias, no groups
  kSigmoidNoAuxTc,       // V3: bias for selection only, groups by the sum of their two largest
};

struct RopeScaling {  // YaRN; absent in config.json means plain RoPE
  bool enabled = false;
  double factor = 1;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
  int64_t original_max_position_embeddings = 0;
};

struct ModelSpec {
  Architecture architecture = Architecture::kDeepseekV3;
  std::string architecture_name;

  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t q_lora_rank = 0;  // 0: no query compression, a single q_proj
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t intermediate_size = 0;

  int64_t n_routed_experts = 0;  // 0: a dense model
  int64_t n_shared_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t moe_intermediate_size = 0;
  int64_t first_k_dense_replace = 0;
  int64_t moe_layer_freq = 1;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  GateKind gate = GateKind::kSigmoidNoAuxTc;
  bool norm_topk_prob = false;
  double routed_scaling_factor = 1;

  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  int64_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;
  int64_t num_nextn_predict_layers = 0;
  std::string quantization;  // "" or "fp8" (block-scaled e4m3)
  int64_t bos_token_id = -1;
  std::vector<int64_t> eos_token_ids;  // union of config.json and generation_config.json

  bool IsMoeLayer(int64_t layer) const;
  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  // Width of one cached row: kv_lora_rank + qk_rope_head_dim values.
  int64_t kv_row_dim() const { return kv_lora_rank + qk_rope_head_dim; }

  // qk_head_dim^-0.5, times the square of YaRN's mscale_all_dim correction.
  double SoftmaxScale() const;
  // Multiplier of cos and sin; 1 for every published config.
  double RopeMagnitude() const;
  // Rotary frequencies after YaRN's blend. [qk_rope_head_dim / 2]
  std::vector<double> RopeInvFreq() const;

  // Derived sizes, in parameters, without the MTP layers and the router's bias.
  int64_t TotalParameters() const;  // matrices and norms: the published totals
  // Matrices that one token visits (embedding and lm_head included): what FLOPs follow from.
  int64_t ActivatedParameters() const;
  // 2 per multiply-add, per token, attention over context excluded, lm_head included.
  double FlopsPerToken() const;
  // Where a prompt's token spends as much on attention (absorbed) as on all its matrices but the
  // lm_head's: in one of twice that length both are half of the work.
  int64_t AttentionParityPosition() const;
};

// Defaults of generation_config.json; each may be absent there.
struct GenerationDefaults {
  double temperature = 1;  // 0 when the file says do_sample: false
  double top_p = 1;
  int64_t top_k = 0;  // 0: all
  double min_p = 0;
  double repetition_penalty = 1;
};

// INVALID_ARGUMENT names the offending field; UNIMPLEMENTED an architecture, scoring function or
// rope type that we cannot run.
absl::StatusOr<ModelSpec> ParseModelSpec(absl::string_view config_json);
// Reads config.json (and generation_config.json, if there) of a model folder. NOT_FOUND names the
// path.
absl::StatusOr<ModelSpec> LoadModelSpec(const std::string& model_dir);
absl::StatusOr<GenerationDefaults> LoadGenerationDefaults(const std::string& model_dir);

}  // namespace sluice
