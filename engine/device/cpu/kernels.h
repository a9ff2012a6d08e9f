// The inner loops of the CPU backend as one table of functions per instruction family. A family is
// used for all row counts of all operations, because batch invariance needs one arithmetic: each
// function computes every output element by a fixed sequence of operations that depends only on
// that element's own row, never on how many rows or columns the call has.
//
// Plain data and pointers only: this header is compiled under every family's -m flags.
#pragma once

#include <cstdint>

namespace sluice::cpu {

// ---- Matrix products: C[r, n] = sum over k of A[r, k] * B[n, k] --------------------------------
//
// B is packed in panels of 16 output columns (rows of the checkpoint's [out, in] matrix):
//   f32:  [panel][k][16]
//   bf16: [panel][k / 2][16][2], k padded with zeros to a multiple of 32
constexpr int kPanelColumns = 16;

enum class Epilogue {
  kStoreF32,   // C = sum, fp32
  kAddF32,     // C = C + sum, fp32
  kStoreBf16,  // C = sum, rounded to bf16
};

struct GemmArgs {
  const void* a = nullptr;  // [rows, a_stride]; bf16 rows are readable up to k_padded
  int64_t a_stride = 0;     // elements
  int rows = 0;
  const void* b = nullptr;  // first panel
  int64_t k = 0;            // inner dimension; of bf16 panels the padded one
  int64_t columns = 0;  // valid output columns from the first panel on; panels = ceil(columns / 16)
  void* c = nullptr;    // [.., c_stride], column 0 is the first panel's first
  int64_t c_stride = 0;  // elements
  Epilogue epilogue = Epilogue::kStoreF32;
  // With kAddF32, both may be set: C[c_rows[r]] += row_scale[r] * sum[r].
  const int32_t* c_rows = nullptr;
  const float* row_scale = nullptr;
};

// ---- Attention: up to kMaxAttentionRows queries over one partition of the cache ----------------
//
// The softmax runs partition by partition of kPartitionTokens positions: exactly within one, then
// merged with what came before, in ascending order. So a query's arithmetic depends on its own
// position only.
constexpr int kPartitionTokens = 256;
constexpr int kMaxAttentionRows = 64;
// What the results of partitions that threads computed side by side may take until they are merged.
constexpr int64_t kMaxAttentionPartialBytes = int64_t{256} << 20;

struct AttentionArgs {
  const void* q = nullptr;  // [rows, q_stride] in the compute dtype: latent part, then rope part
  int64_t q_stride = 0;     // elements, a multiple of 32; padding is zero
  int rows = 0;             // <= kMaxAttentionRows
  const int32_t* last = nullptr;  // [rows] last position each row may see
  // Rows of the cache: token t of the partition is row_base[t / block_tokens] + (t % block_tokens)
  // * row_stride, in elements of the compute dtype.
  const void* const* row_base = nullptr;
  int block_tokens = 0;
  int64_t row_stride = 0;  // elements; rows are readable up to q_stride elements
  int64_t latent_dim = 0;  // the first latent_dim columns are also the values
  int first_token = 0;     // position of the partition's first token
  int num_tokens = 0;      // of the partition, up to the last that any row sees
  // Likewise of the partition that this thread will attend to next, to be fetched beside the
  // arithmetic; null if there is none.
  const void* const* next_row_base = nullptr;
  int next_tokens = 0;
  float scale = 0;
  // True if this scratch's previous call had the very same q and rows: what that call arranged of
  // them is still there.
  bool same_queries = false;
  // Result, not normalised: out[r] = sum p_t v_t, sum[r] = sum p_t, max[r] = largest score.
  // A row that sees nothing here has sum 0.
  float* out = nullptr;     // [rows, out_stride]
  int64_t out_stride = 0;   // >= latent_dim rounded up to 32
  float* max = nullptr;     // [rows]
  float* sum = nullptr;     // [rows]
  void* scratch = nullptr;  // attention_scratch_bytes, 64-byte aligned, of this thread
};

struct Kernels {
  const char* name;

  void (*gemm_f32)(const GemmArgs& args);
  void (*gemm_bf16)(const GemmArgs& args);

  // `q_stride` as in AttentionArgs.
  int64_t (*attention_scratch_bytes)(int64_t q_stride, int64_t latent_dim);
  void (*attention_f32)(const AttentionArgs& args);
  void (*attention_bf16)(const AttentionArgs& args);
  // Merges (part_out, part_max, part_sum) of one row into the running (out, max, sum); the running
  // sum is 0 before the first. [columns]
  void (*attention_merge)(float* out, float* max, float* sum, const float* part_out, float part_max,
                          float part_sum, int64_t columns);

  // y = x * factor, one row of n columns, to f32 or bf16.
  void (*scale_f32)(const float* x, float factor, float* y, int64_t n);
  void (*scale_bf16)(const float* x, float factor, uint16_t* y, int64_t n);
  // One row of RMSNorm: x * rsqrt(mean(x^2) + eps) * weight. Either output may be null.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y_f32,
                   uint16_t* y_bf16);
  // y = silu(gate) * up, one row of n columns; `pairs` is [ceil(n / 16)][gate 16, up 16].
  void (*silu_mul_f32)(const float* pairs, float* y, int64_t n);
  void (*silu_mul_bf16)(const float* pairs, uint16_t* y, int64_t n);
  // In place over one row of router logits.
  void (*sigmoid)(float* x, int64_t n);
  void (*softmax)(float* x, int64_t n);
};

// Null where the family was not compiled in. Whether this processor can run it: see isa.h.
const Kernels* PortableKernels();
const Kernels* Avx2Kernels();
const Kernels* Avx512Kernels();
const Kernels* AmxKernels();

}  // namespace sluice::cpu
