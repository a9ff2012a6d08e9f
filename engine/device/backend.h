// What the model asks of a device: a few fused operations over plain parameter structs. The CPU
// backend (cpu/) is complete and the truth; other devices implement the same class behind the same
// conformance suite. One thread (the engine thread) calls everything; operations are finished on
// return.
//
// Numbers: with dtype f32 everything is fp32. With bf16, weights, inputs of matrix products
// (Activations) and the cache are bf16; sums, norms, softmax, the residual stream and the router
// are fp32.
//
// Batch invariance: every output row is a function of its own inputs alone. Row counts, the other
// rows of a call, the division of work and the number of threads never change a bit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "engine/device/buffer.h"
#include "modelspec/kv_layout.h"
#include "modelspec/model_spec.h"

namespace sluice {

// Where a backend reads a weight matrix [rows = outputs, columns = inputs] from while packing it.
struct MatrixSource {
  int64_t rows = 0;
  int64_t columns = 0;
  // Fills out[columns] with one row, exact in fp32. Called from several threads at once.
  std::function<void(int64_t row, float* out)> read_row;
};

// A weight in a backend's own layout; constant after packing.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  virtual int64_t size_bytes() const = 0;
};

// One SwiGLU: down( silu(gate x) * up x ).
struct FeedForwardWeights {
  std::unique_ptr<PackedMatrix> gate_up;  // from PackGateUp, [2 * intermediate, hidden]
  std::unique_ptr<PackedMatrix> down;     // [hidden, intermediate]
};

struct EmbedParams {
  absl::Span<const TokenId> tokens;     // [num_tokens]
  const PackedMatrix* table = nullptr;  // from PackTable, [vocab_size, hidden_size]
  float* out = nullptr;                 // [num_tokens, hidden_size]
};

struct RmsNormParams {
  const float* x = nullptr;  // [.., x_stride]
  int64_t x_stride = 0;
  int rows = 0;
  const int32_t* row_index = nullptr;  // [rows] rows of x to take; null: 0, 1, ...
  const float* weight = nullptr;       // [columns]
  int64_t columns = 0;
  float eps = 0;
  Activations* out = nullptr;  // [rows, columns]
  float* out_f32 = nullptr;    // [rows, columns], the same before rounding; may be null
};

struct LinearParams {
  const Activations* x = nullptr;  // [rows, in]
  int rows = 0;
  const PackedMatrix* weight = nullptr;  // [out, in]
  float* y = nullptr;                    // [rows, y_stride]
  int64_t y_stride = 0;
  bool accumulate = false;  // y += x W^T instead of y = x W^T
};

// One small product per head: y[:, h] = x[:, h] W[h]^T.
struct HeadLinearParams {
  const Activations* x = nullptr;  // [rows, heads, in], a part per head
  int rows = 0;
  absl::Span<const std::unique_ptr<PackedMatrix>> weights;  // [heads] of [out, in]
  Activations* y = nullptr;   // [rows, ..]; head h begins at column h * y_head_stride
  int64_t y_head_stride = 0;  // elements
};

// One layer of the paged cache. Token slot s lives in block s / block_tokens.
struct KvLayerView {
  uint8_t* base = nullptr;  // this layer in block 0: [block_tokens, row_dim]
  int64_t block_bytes = 0;  // from a block to the next
  int64_t block_tokens = 0;
  int64_t row_dim = 0;  // kv_lora_rank + qk_rope_head_dim
};

// Splits queries, rotates their rope part and the key's, normalises the latent and writes the cache
// row (latent | rope key), in the interleaved rope layout of the checkpoints.
struct RopeWriteKvParams {
  int rows = 0;
  const float* q = nullptr;  // [rows, q_stride]: heads x (nope | rope)
  int64_t q_stride = 0;
  const float* kv = nullptr;  // [rows, kv_stride]: latent | rope key
  int64_t kv_stride = 0;
  const float* kv_norm = nullptr;  // [latent_dim]
  float eps = 0;
  const float* cos = nullptr;  // [rows, rope_dim / 2] of each row's position
  const float* sin = nullptr;
  int heads = 0;
  int64_t nope_dim = 0, rope_dim = 0, latent_dim = 0;
  absl::Span<const int64_t> slots;  // [rows] where each token's cache row goes
  KvLayerView kv_cache;
  Activations* q_nope = nullptr;  // [rows, heads, nope_dim]
  Activations* q_full = nullptr;  // [rows, heads, row_dim]; only the rope columns are written here
};

struct AttentionSequence {
  int first_row = 0;  // of this sequence's tokens in the batch
  int num_tokens = 0;
  int start_position = 0;
  absl::Span<const BlockId> block_table;
};

// Causal attention in the absorbed form: scores against latent | rope key, values are the latents.
struct MlaAttentionParams {
  const Activations* q = nullptr;  // [rows, heads, row_dim]
  int heads = 0;
  int64_t latent_dim = 0;
  float scale = 0;
  KvLayerView kv_cache;  // rows of this step are already written
  absl::Span<const AttentionSequence> sequences;
  Activations* out = nullptr;  // [rows, heads, latent_dim]
};

struct GateParams {
  const float* x = nullptr;  // [rows, hidden], fp32
  int rows = 0;
  const PackedMatrix* weight = nullptr;  // from PackF32, [n_routed_experts, hidden]
  const float* bias = nullptr;           // [n_routed_experts] for selection only; may be null
  const ModelSpec* spec = nullptr;       // gate, groups, top-k, scaling
  int32_t* experts = nullptr;            // [rows, num_experts_per_tok] ascending
  float* weights = nullptr;              // [rows, num_experts_per_tok] scaling included
};

// y += sum over chosen experts (ascending) of weight * expert(x), then + shared(x).
struct FeedForwardParams {
  const Activations* x = nullptr;  // [rows, hidden]
  int rows = 0;
  absl::Span<const FeedForwardWeights> experts;  // empty: a dense layer
  int experts_per_token = 0;
  const int32_t* chosen = nullptr;             // [rows, experts_per_token] ascending
  const float* weights = nullptr;              // [rows, experts_per_token]
  const FeedForwardWeights* shared = nullptr;  // shared experts or the dense network; may be null
  float* y = nullptr;                          // [rows, hidden]
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual DType dtype() const = 0;
  // Names the arithmetic, for example "cpu-avx512-bf16": other kernels give other bits.
  virtual std::string kernel_family() const = 0;
  virtual int num_threads() const = 0;
  // As ThreadPool::ParallelFor, on the threads that compute, while they do not.
  virtual void ParallelFor(int num_tasks, absl::FunctionRef<void(int task, int worker)> fn) = 0;

  virtual std::unique_ptr<PackedMatrix> Pack(const MatrixSource& source) = 0;
  // Gate and up projection of one SwiGLU, so that both are computed side by side.
  virtual std::unique_ptr<PackedMatrix> PackGateUp(const MatrixSource& gate,
                                                   const MatrixSource& up) = 0;
  virtual std::unique_ptr<PackedMatrix> PackF32(const MatrixSource& source) = 0;    // the router
  virtual std::unique_ptr<PackedMatrix> PackTable(const MatrixSource& source) = 0;  // embeddings

  virtual void Embed(const EmbedParams& params) = 0;
  virtual void RmsNorm(const RmsNormParams& params) = 0;
  virtual void Linear(const LinearParams& params) = 0;
  virtual void HeadLinear(const HeadLinearParams& params) = 0;
  virtual void RopeWriteKv(const RopeWriteKvParams& params) = 0;
  virtual void MlaAttention(const MlaAttentionParams& params) = 0;
  virtual void Gate(const GateParams& params) = 0;
  virtual void FeedForward(const FeedForwardParams& params) = 0;
};

}  // namespace sluice
