#include "engine/model/deepseek_model.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "common/check.h"

namespace sluice {
namespace {

class DeepseekModel final : public Model {
 public:
  DeepseekModel(std::unique_ptr<DeepseekWeights> weights, KvStore* kv_store);

  void Forward(absl::Span<const SequenceSlice> slices, absl::Span<float> logits) override;
  int num_workers() const override { return backend_.num_threads(); }
  void ParallelFor(int num_tasks, absl::FunctionRef<void(int task, int worker)> fn) override {
    backend_.ParallelFor(num_tasks, fn);
  }
  const ModelSpec& spec() const override { return spec_; }

 private:
  void PlanBatch(absl::Span<const SequenceSlice> slices);
  void FillRope(int row, int position);
  void Attention(int64_t layer, const DeepseekAttentionWeights& w);
  void FeedForward(const DeepseekLayerWeights& w);
  void Logits(absl::Span<float> logits);

  KvLayerView CacheLayer(int64_t layer) const {
    return {kv_store_->Layer(BlockId(0), layer), kv_store_->layout().block_bytes(),
            kv_store_->layout().block_tokens, spec_.kv_row_dim()};
  }
  float eps() const { return static_cast<float>(spec_.rms_norm_eps); }

  const std::unique_ptr<DeepseekWeights> weights_;
  const ModelSpec& spec_;
  Backend& backend_;
  KvStore* const kv_store_;
  const std::vector<double> inv_freq_;  // [qk_rope_head_dim / 2]
  const int64_t q_width_;               // heads * qk_head_dim
  const int64_t q_kv_width_;            // columns of q_kv_a's output

  // One step's batch. All buffers keep their size between steps.
  int rows_ = 0;
  std::vector<TokenId> tokens_;               // [rows]
  std::vector<int64_t> slots_;                // [rows] cache slot of each token
  std::vector<int32_t> logit_rows_;           // rows whose logits are wanted
  std::vector<AttentionSequence> sequences_;  // one a slice
  std::vector<float> rope_cos_, rope_sin_;    // [rows, qk_rope_head_dim / 2]

  std::vector<float> x_;               // [rows, hidden] the residual stream
  std::vector<float> normed_;          // [rows, hidden] for the router
  std::vector<float> q_kv_;            // [rows, q_kv_width]
  std::vector<float> q_;               // [rows, q_width]
  std::vector<int32_t> chosen_;        // [rows, num_experts_per_tok]
  std::vector<float> chosen_weights_;  // [rows, num_experts_per_tok]
  Activations input_;                  // [rows, hidden]
  Activations q_latent_;               // [rows, q_lora_rank]
  Activations q_nope_;                 // [rows, heads, qk_nope_head_dim]
  Activations q_full_;                 // [rows, heads, kv_row_dim]
  Activations o_latent_;               // [rows, heads, kv_lora_rank]
  Activations o_;                      // [rows, heads * v_head_dim]
};

DeepseekModel::DeepseekModel(std::unique_ptr<DeepseekWeights> weights, KvStore* kv_store)
    : weights_(std::move(weights)),
      spec_(weights_->spec),
      backend_(*weights_->backend),
      kv_store_(kv_store),
      inv_freq_(spec_.RopeInvFreq()),
      q_width_(spec_.num_attention_heads * spec_.qk_head_dim()),
      q_kv_width_((spec_.q_lora_rank > 0 ? spec_.q_lora_rank : q_width_) + spec_.kv_row_dim()),
      input_(backend_.dtype(), spec_.hidden_size),
      q_latent_(backend_.dtype(), spec_.q_lora_rank),
      q_nope_(backend_.dtype(), spec_.qk_nope_head_dim, spec_.num_attention_heads),
      q_full_(backend_.dtype(), spec_.kv_row_dim(), spec_.num_attention_heads),
      o_latent_(backend_.dtype(), spec_.kv_lora_rank, spec_.num_attention_heads),
      o_(backend_.dtype(), spec_.num_attention_heads * spec_.v_head_dim) {
  SLUICE_CHECK(kv_store_->layout().dtype == backend_.dtype());
  SLUICE_CHECK(kv_store_->layout().bytes_per_token() ==
               spec_.num_hidden_layers * spec_.kv_row_dim() * DTypeBytes(backend_.dtype()));
}

void DeepseekModel::PlanBatch(absl::Span<const SequenceSlice> slices) {
  tokens_.clear();
  slots_.clear();
  logit_rows_.clear();
  sequences_.clear();
  const int64_t block_tokens = kv_store_->layout().block_tokens;
  for (const SequenceSlice& slice : slices) {
    const int num_tokens = static_cast<int>(slice.tokens.size());
    const int first_row = static_cast<int>(tokens_.size());
    SLUICE_CHECK(num_tokens > 0 && slice.start_position >= 0);
    SLUICE_CHECK(slice.num_logit_rows >= 0 && slice.num_logit_rows <= num_tokens);
    SLUICE_CHECK(static_cast<int64_t>(slice.block_table.size()) * block_tokens >=
                 int64_t{slice.start_position} + num_tokens);
    for (int i = 0; i < num_tokens; ++i) {
      const int64_t position = slice.start_position + i;
      const BlockId block = slice.block_table[static_cast<size_t>(position / block_tokens)];
      SLUICE_CHECK(block.value >= 0 && block.value < kv_store_->num_blocks());
      tokens_.push_back(slice.tokens[static_cast<size_t>(i)]);
      slots_.push_back(int64_t{block.value} * block_tokens + position % block_tokens);
    }
    for (int i = num_tokens - slice.num_logit_rows; i < num_tokens; ++i) {
      logit_rows_.push_back(first_row + i);
    }
    sequences_.push_back({first_row, num_tokens, slice.start_position, slice.block_table});
  }
  rows_ = static_cast<int>(tokens_.size());

  const size_t n = tokens_.size();
  const auto grow = [n](auto& buffer, int64_t columns) {
    const size_t size = n * static_cast<size_t>(columns);
    if (buffer.size() < size) buffer.resize(size);
  };
  grow(rope_cos_, spec_.qk_rope_head_dim / 2);
  grow(rope_sin_, spec_.qk_rope_head_dim / 2);
  grow(x_, spec_.hidden_size);
  grow(normed_, spec_.hidden_size);
  grow(q_kv_, q_kv_width_);
  grow(q_, q_width_);
  grow(chosen_, spec_.num_experts_per_tok);
  grow(chosen_weights_, spec_.num_experts_per_tok);
  for (Activations* activations : {&input_, &q_latent_, &q_nope_, &q_full_, &o_latent_, &o_}) {
    activations->ReserveRows(rows_);
  }
  for (const AttentionSequence& sequence : sequences_) {
    for (int i = 0; i < sequence.num_tokens; ++i) {
      FillRope(sequence.first_row + i, sequence.start_position + i);
    }
  }
}

// Angles in double precision: a float has too few bits for positions beyond 10^5.
void DeepseekModel::FillRope(int row, int position) {
  const double magnitude = spec_.RopeMagnitude();
  const size_t half = inv_freq_.size();
  for (size_t i = 0; i < half; ++i) {
    const double angle = position * inv_freq_[i];
    rope_cos_[static_cast<size_t>(row) * half + i] =
        static_cast<float>(std::cos(angle) * magnitude);
    rope_sin_[static_cast<size_t>(row) * half + i] =
        static_cast<float>(std::sin(angle) * magnitude);
  }
}

void DeepseekModel::Forward(absl::Span<const SequenceSlice> slices, absl::Span<float> logits) {
  PlanBatch(slices);
  if (rows_ == 0) return;
  backend_.Embed({.tokens = tokens_, .table = weights_->embedding.get(), .out = x_.data()});
  for (size_t i = 0; i < weights_->layers.size(); ++i) {
    const DeepseekLayerWeights& layer = weights_->layers[i];
    Attention(static_cast<int64_t>(i), layer.attention);
    FeedForward(layer);
  }
  Logits(logits);
}

// DeepSeek-V2 paper, section 2.1, with W_UK and W_UV absorbed into query and output.
void DeepseekModel::Attention(int64_t layer, const DeepseekAttentionWeights& w) {
  const int heads = static_cast<int>(spec_.num_attention_heads);
  backend_.RmsNorm({.x = x_.data(),
                    .x_stride = spec_.hidden_size,
                    .rows = rows_,
                    .weight = w.input_norm.data(),
                    .columns = spec_.hidden_size,
                    .eps = eps(),
                    .out = &input_});
  backend_.Linear({.x = &input_,
                   .rows = rows_,
                   .weight = w.q_kv_a.get(),
                   .y = q_kv_.data(),
                   .y_stride = q_kv_width_});
  const float* q = q_kv_.data();
  int64_t q_stride = q_kv_width_;
  if (w.q_b != nullptr) {
    backend_.RmsNorm({.x = q_kv_.data(),
                      .x_stride = q_kv_width_,
                      .rows = rows_,
                      .weight = w.q_a_norm.data(),
                      .columns = spec_.q_lora_rank,
                      .eps = eps(),
                      .out = &q_latent_});
    backend_.Linear({.x = &q_latent_,
                     .rows = rows_,
                     .weight = w.q_b.get(),
                     .y = q_.data(),
                     .y_stride = q_width_});
    q = q_.data();
    q_stride = q_width_;
  }
  const KvLayerView cache = CacheLayer(layer);
  backend_.RopeWriteKv({.rows = rows_,
                        .q = q,
                        .q_stride = q_stride,
                        .kv = q_kv_.data() + q_kv_width_ - spec_.kv_row_dim(),
                        .kv_stride = q_kv_width_,
                        .kv_norm = w.kv_a_norm.data(),
                        .eps = eps(),
                        .cos = rope_cos_.data(),
                        .sin = rope_sin_.data(),
                        .heads = heads,
                        .nope_dim = spec_.qk_nope_head_dim,
                        .rope_dim = spec_.qk_rope_head_dim,
                        .latent_dim = spec_.kv_lora_rank,
                        .slots = slots_,
                        .kv_cache = cache,
                        .q_nope = &q_nope_,
                        .q_full = &q_full_});
  backend_.HeadLinear({.x = &q_nope_,
                       .rows = rows_,
                       .weights = w.w_uk,
                       .y = &q_full_,
                       .y_head_stride = q_full_.part_stride()});
  backend_.MlaAttention({.q = &q_full_,
                         .heads = heads,
                         .latent_dim = spec_.kv_lora_rank,
                         .scale = static_cast<float>(spec_.SoftmaxScale()),
                         .kv_cache = cache,
                         .sequences = sequences_,
                         .out = &o_latent_});
  backend_.HeadLinear({.x = &o_latent_,
                       .rows = rows_,
                       .weights = w.w_uv,
                       .y = &o_,
                       .y_head_stride = spec_.v_head_dim});
  backend_.Linear({.x = &o_,
                   .rows = rows_,
                   .weight = w.o.get(),
                   .y = x_.data(),
                   .y_stride = spec_.hidden_size,
                   .accumulate = true});
}

void DeepseekModel::FeedForward(const DeepseekLayerWeights& w) {
  const bool routed = w.router != nullptr;
  backend_.RmsNorm({.x = x_.data(),
                    .x_stride = spec_.hidden_size,
                    .rows = rows_,
                    .weight = w.post_attention_norm.data(),
                    .columns = spec_.hidden_size,
                    .eps = eps(),
                    .out = &input_,
                    .out_f32 = routed ? normed_.data() : nullptr});
  FeedForwardParams params{.x = &input_, .rows = rows_, .shared = w.shared.get(), .y = x_.data()};
  if (routed) {
    backend_.Gate({.x = normed_.data(),
                   .rows = rows_,
                   .weight = w.router.get(),
                   .bias = w.router_bias.empty() ? nullptr : w.router_bias.data(),
                   .spec = &spec_,
                   .experts = chosen_.data(),
                   .weights = chosen_weights_.data()});
    params.experts = w.experts;
    params.experts_per_token = static_cast<int>(spec_.num_experts_per_tok);
    params.chosen = chosen_.data();
    params.weights = chosen_weights_.data();
  }
  backend_.FeedForward(params);
}

void DeepseekModel::Logits(absl::Span<float> logits) {
  const int rows = static_cast<int>(logit_rows_.size());
  SLUICE_CHECK(logits.size() == logit_rows_.size() * static_cast<size_t>(spec_.vocab_size));
  if (rows == 0) return;
  backend_.RmsNorm({.x = x_.data(),
                    .x_stride = spec_.hidden_size,
                    .rows = rows,
                    .row_index = logit_rows_.data(),
                    .weight = weights_->final_norm.data(),
                    .columns = spec_.hidden_size,
                    .eps = eps(),
                    .out = &input_});
  backend_.Linear({.x = &input_,
                   .rows = rows,
                   .weight = weights_->lm_head.get(),
                   .y = logits.data(),
                   .y_stride = spec_.vocab_size});
}

}  // namespace

std::unique_ptr<Model> CreateDeepseekModel(std::unique_ptr<DeepseekWeights> weights,
                                           KvStore* kv_store) {
  return std::make_unique<DeepseekModel>(std::move(weights), kv_store);
}

}  // namespace sluice
