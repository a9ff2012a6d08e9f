#include "engine/runtime/memory_fit.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "engine/device/cpu/kernels.h"

namespace sluice {
namespace {

// Matrix tiles may overhang the last row (Activations).
constexpr int64_t kOverhangRows = 32;

constexpr int64_t kFloatBytes = sizeof(float);

// Attention over few, long contexts: fewer than two groups of rows a thread are cut up.
int64_t AttentionPartialBytes(const ModelSpec& spec, int64_t max_model_len, int num_threads) {
  const int64_t partitions = 2 * num_threads * (max_model_len / cpu::kPartitionTokens + 1);
  return std::min(cpu::kMaxAttentionPartialBytes,
                  partitions * cpu::kMaxAttentionRows * (spec.kv_lora_rank + 2) * kFloatBytes);
}

}  // namespace

int64_t WeightBytes(const ModelSpec& spec, DType dtype) {
  return spec.TotalParameters() * DTypeBytes(dtype);
}

int64_t StepBytes(const ModelSpec& spec, DType dtype, const SchedulerOptions& scheduler,
                  int num_threads) {
  const int64_t rows = scheduler.max_num_batched_tokens + kOverhangRows;
  const int64_t heads = spec.num_attention_heads;
  const int64_t q_width = heads * spec.qk_head_dim();
  const int64_t f32_columns = 2 * spec.hidden_size + spec.qk_rope_head_dim + 2 * q_width +
                              spec.q_lora_rank + spec.kv_row_dim() + 2 * spec.n_routed_experts +
                              spec.n_group + 4 * spec.num_experts_per_tok;
  const int64_t attention_columns =
      spec.hidden_size + spec.q_lora_rank +
      heads * (spec.qk_nope_head_dim + spec.kv_row_dim() + spec.kv_lora_rank + spec.v_head_dim);
  // A routed expert's rows are gathered; dense and shared ones read them where they are.
  const int64_t feed_forward_columns =
      spec.num_experts_per_tok * (spec.hidden_size + spec.moe_intermediate_size) +
      spec.n_shared_experts * spec.moe_intermediate_size + spec.intermediate_size;
  const int64_t activations =
      rows *
      (f32_columns * kFloatBytes + (attention_columns + feed_forward_columns) * DTypeBytes(dtype));
  const int64_t logits = scheduler.max_num_seqs * spec.vocab_size * kFloatBytes;
  const int64_t max_model_len =
      scheduler.max_model_len > 0 ? scheduler.max_model_len : spec.max_position_embeddings;
  return activations + logits + AttentionPartialBytes(spec, max_model_len, num_threads);
}

absl::Status CheckWeightsFit(int64_t weight_bytes, int64_t available_bytes) {
  if (weight_bytes <= available_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the weights take %.1f GB of memory, but %.1f GB are available",
      static_cast<double>(weight_bytes) / 1e9, static_cast<double>(available_bytes) / 1e9));
}

}  // namespace sluice
