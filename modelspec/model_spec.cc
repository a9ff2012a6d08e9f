// What follows from a spec by arithmetic alone.
#include "modelspec/model_spec.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace sluice {
namespace {

// YaRN's attention temperature (section 3.4 of the YaRN paper, in DeepSeek's parameterisation).
double YarnMagnitude(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

// The (fractional) index of the frequency that turns `rotations` times within the original context.
double YarnCorrection(double rotations, double dim, double theta, double original_context) {
  return dim * std::log(original_context / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(theta));
}

int64_t NumMoeLayers(const ModelSpec& spec) {
  int64_t count = 0;
  for (int64_t layer = 0; layer < spec.num_hidden_layers; ++layer) {
    if (spec.IsMoeLayer(layer)) ++count;
  }
  return count;
}

int64_t AttentionParameters(const ModelSpec& spec) {
  const int64_t q_rows = spec.num_attention_heads * spec.qk_head_dim();
  const int64_t q = spec.q_lora_rank == 0
                        ? spec.hidden_size * q_rows
                        : spec.hidden_size * spec.q_lora_rank + spec.q_lora_rank * q_rows;
  const int64_t kv_a = spec.hidden_size * spec.kv_row_dim();
  const int64_t kv_b =
      spec.kv_lora_rank * spec.num_attention_heads * (spec.qk_nope_head_dim + spec.v_head_dim);
  const int64_t o = spec.num_attention_heads * spec.v_head_dim * spec.hidden_size;
  return q + kv_a + kv_b + o;
}

int64_t NormParameters(const ModelSpec& spec) {
  const int64_t layer = 2 * spec.hidden_size + spec.q_lora_rank + spec.kv_lora_rank;
  return spec.num_hidden_layers * layer + spec.hidden_size;
}

// Matrices of all layers when each MoE layer has `experts_per_layer` routed experts (all of them,
// or those that one token visits).
int64_t LayerParameters(const ModelSpec& spec, int64_t experts_per_layer) {
  const int64_t expert = 3 * spec.hidden_size * spec.moe_intermediate_size;
  const int64_t router = spec.hidden_size * spec.n_routed_experts;
  const int64_t moe = (experts_per_layer + spec.n_shared_experts) * expert + router;
  const int64_t dense = 3 * spec.hidden_size * spec.intermediate_size;
  const int64_t num_moe = NumMoeLayers(spec);
  return spec.num_hidden_layers * AttentionParameters(spec) + num_moe * moe +
         (spec.num_hidden_layers - num_moe) * dense;
}

}  // namespace

bool ModelSpec::IsMoeLayer(int64_t layer) const {
  return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
}

double ModelSpec::SoftmaxScale() const {
  const double scale = 1 / std::sqrt(static_cast<double>(qk_head_dim()));
  if (!rope_scaling.enabled) return scale;
  const double magnitude = YarnMagnitude(rope_scaling.factor, rope_scaling.mscale_all_dim);
  return scale * magnitude * magnitude;
}

double ModelSpec::RopeMagnitude() const {
  if (!rope_scaling.enabled) return 1;
  return YarnMagnitude(rope_scaling.factor, rope_scaling.mscale) /
         YarnMagnitude(rope_scaling.factor, rope_scaling.mscale_all_dim);
}

std::vector<double> ModelSpec::RopeInvFreq() const {
  const auto dim = static_cast<double>(qk_rope_head_dim);
  std::vector<double> inv_freq(static_cast<size_t>(qk_rope_head_dim / 2));
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    inv_freq[i] = std::pow(rope_theta, -2.0 * static_cast<double>(i) / dim);
  }
  if (!rope_scaling.enabled) return inv_freq;

  // Fast frequencies stay, slow ones are interpolated by `factor`, those between are blended.
  const auto context = static_cast<double>(rope_scaling.original_max_position_embeddings);
  const double low =
      std::max(std::floor(YarnCorrection(rope_scaling.beta_fast, dim, rope_theta, context)), 0.0);
  double high = std::min(
      std::ceil(YarnCorrection(rope_scaling.beta_slow, dim, rope_theta, context)), dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / rope_scaling.factor * ramp + inv_freq[i] * (1 - ramp);
  }
  return inv_freq;
}

int64_t ModelSpec::TotalParameters() const {
  return 2 * vocab_size * hidden_size + LayerParameters(*this, n_routed_experts) +
         NormParameters(*this);
}

int64_t ModelSpec::ActivatedParameters() const {
  return 2 * vocab_size * hidden_size + LayerParameters(*this, num_experts_per_tok);
}

int64_t ModelSpec::AttentionParityPosition() const {
  const int64_t per_position =
      num_hidden_layers * num_attention_heads * (kv_row_dim() + kv_lora_rank);
  return LayerParameters(*this, num_experts_per_tok) / per_position;
}

double ModelSpec::FlopsPerToken() const {
  return 2.0 * static_cast<double>(ActivatedParameters() - vocab_size * hidden_size);
}

}  // namespace sluice
