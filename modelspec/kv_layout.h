// The bytes of one KV block and their compatibility between workers. Immutable; any thread.
//
// A block holds kBlockTokens tokens of all layers of one pipeline stage, contiguous:
//   for each cache group: [layers of this stage][block_tokens][bytes_per_token / layer]
// MLA has one group, the latent: kv_lora_rank + qk_rope_head_dim values a token and layer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/block_hash.h"
#include "modelspec/model_spec.h"

namespace sluice {

enum class DType { kF32, kBF16 };
const char* DTypeName(DType dtype);  // "f32", "bf16"
int64_t DTypeBytes(DType dtype);

struct CacheGroup {
  std::string name;  // "latent"
  int64_t num_layers = 0;
  int64_t bytes_per_token_and_layer = 0;
};

struct KvLayout {
  int64_t block_tokens = kBlockTokens;
  DType dtype = DType::kBF16;
  std::vector<CacheGroup> groups;

  int64_t block_bytes() const;
  int64_t bytes_per_token() const;
};

KvLayout MakeKvLayout(const ModelSpec& spec, DType dtype);

// What two workers must share for their KV to be exchangeable and their results identical: model
// (config and a digest of the weights' headers), dtype, layout, instruction family, the ids that
// may be sampled, protocol version.
struct KvFingerprint {
  std::string digest;  // 32 bytes, SHA-256 of `text`
  std::string text;    // for people: says what differs
};
// `model_digest` identifies the weights (see engine/weights); `kernel_family` the arithmetic, for
// example "cpu-amx-bf16": other kernels give other bits. Ids below `sampleable_vocab_size` are
// sampled: the tokenizer's, or all of the model's; an answer must go on among the same ones.
KvFingerprint MakeKvFingerprint(const ModelSpec& spec, const KvLayout& layout,
                                const std::string& model_digest, const std::string& kernel_family,
                                int64_t sampleable_vocab_size);

}  // namespace sluice
