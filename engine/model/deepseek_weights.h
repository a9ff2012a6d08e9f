// The weights of a DeepSeek V2/V3 model in the form the backend computes with, and loading them
// from a model folder. Constant after loading; used by the engine thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/device/backend.h"
#include "engine/weights/manifest.h"
#include "modelspec/kv_layout.h"
#include "modelspec/model_spec.h"

namespace sluice {

struct DeepseekAttentionWeights {
  std::vector<float> input_norm;  // [hidden]
  // What reads the layer's input, as one matrix: q_a_proj (or q_proj), then kv_a_proj_with_mqa.
  std::unique_ptr<PackedMatrix> q_kv_a;
  std::vector<float> q_a_norm;        // [q_lora_rank]; empty without query compression
  std::unique_ptr<PackedMatrix> q_b;  // [heads * qk_head_dim, q_lora_rank]; null likewise
  std::vector<float> kv_a_norm;       // [kv_lora_rank]
  // kv_b_proj, split per head and absorbed: scores and values live in the latent space.
  std::vector<std::unique_ptr<PackedMatrix>> w_uk;  // [heads] of [kv_lora_rank, qk_nope_head_dim]
  std::vector<std::unique_ptr<PackedMatrix>> w_uv;  // [heads] of [v_head_dim, kv_lora_rank]
  std::unique_ptr<PackedMatrix> o;                  // [hidden, heads * v_head_dim]
};

struct DeepseekLayerWeights {
  DeepseekAttentionWeights attention;
  std::vector<float> post_attention_norm;   // [hidden]
  std::unique_ptr<PackedMatrix> router;     // [n_routed_experts, hidden], fp32; null: dense layer
  std::vector<float> router_bias;           // [n_routed_experts] or empty
  std::vector<FeedForwardWeights> experts;  // [n_routed_experts]
  std::unique_ptr<FeedForwardWeights> shared;  // shared experts, or the whole dense network
};

struct DeepseekWeights {
  ModelSpec spec;
  std::unique_ptr<Backend> backend;
  std::string model_digest;                 // see engine/weights/checkpoint.h
  std::unique_ptr<PackedMatrix> embedding;  // [vocab, hidden]
  std::vector<DeepseekLayerWeights> layers;
  std::vector<float> final_norm;          // [hidden]
  std::unique_ptr<PackedMatrix> lm_head;  // [vocab, hidden]
};

struct DeepseekLoadOptions {
  std::string model_dir;
  DType dtype = DType::kBF16;
  std::string isa;                          // see engine/device/cpu/isa.h; "" is auto
  int num_threads = 0;                      // 0: all processors this process may use
  int compute_niceness = 0;                 // see EngineOptions
  const Manifest* manifest = nullptr;       // what the weights must be; null: not checked
  std::function<void(double)> on_progress;  // 0..1, on the calling thread; may be null
};

// Checks and packs everything: seconds. Errors name the file, tensor or field. With a manifest,
// every byte is hashed beside the packing, and a difference ends the loading.
absl::StatusOr<std::unique_ptr<DeepseekWeights>> LoadDeepseekWeights(
    const ModelSpec& spec, const DeepseekLoadOptions& options);

}  // namespace sluice
