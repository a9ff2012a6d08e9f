#include "modelspec/kv_layout.h"

#include <openssl/sha.h>

#include <charconv>

#include "absl/strings/str_cat.h"

namespace sluice {
namespace {

// Raised when the bytes of a block or the messages that carry it change meaning.
constexpr int kKvProtocolVersion = 1;

std::string Exact(double value) {
  char buffer[64];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, result.ptr);
}

// Every field of the spec that changes a KV byte or a logit.
std::string SpecText(const ModelSpec& spec) {
  const RopeScaling& rope = spec.rope_scaling;
  return absl::StrCat(
      absl::StrCat("architecture=", spec.architecture_name, " vocab_size=", spec.vocab_size,
                   " hidden_size=", spec.hidden_size, " num_hidden_layers=", spec.num_hidden_layers,
                   " num_attention_heads=", spec.num_attention_heads,
                   " q_lora_rank=", spec.q_lora_rank, " kv_lora_rank=", spec.kv_lora_rank,
                   " qk_nope_head_dim=", spec.qk_nope_head_dim,
                   " qk_rope_head_dim=", spec.qk_rope_head_dim, " v_head_dim=", spec.v_head_dim,
                   " intermediate_size=", spec.intermediate_size),
      absl::StrCat(" n_routed_experts=", spec.n_routed_experts, " n_shared_experts=",
                   spec.n_shared_experts, " num_experts_per_tok=", spec.num_experts_per_tok,
                   " moe_intermediate_size=", spec.moe_intermediate_size,
                   " first_k_dense_replace=", spec.first_k_dense_replace,
                   " moe_layer_freq=", spec.moe_layer_freq, " n_group=", spec.n_group,
                   " topk_group=", spec.topk_group, " gate=", static_cast<int>(spec.gate),
                   " norm_topk_prob=", spec.norm_topk_prob ? 1 : 0,
                   " routed_scaling_factor=", Exact(spec.routed_scaling_factor)),
      absl::StrCat(" rms_norm_eps=", Exact(spec.rms_norm_eps),
                   " rope_theta=", Exact(spec.rope_theta), " quantization=", spec.quantization),
      rope.enabled
          ? absl::StrCat(" yarn=", Exact(rope.factor), "/", Exact(rope.beta_fast), "/",
                         Exact(rope.beta_slow), "/", Exact(rope.mscale), "/",
                         Exact(rope.mscale_all_dim), "/", rope.original_max_position_embeddings)
          : "");
}

}  // namespace

const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
  }
  return "invalid";
}

int64_t DTypeBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

int64_t KvLayout::bytes_per_token() const {
  int64_t bytes = 0;
  for (const CacheGroup& group : groups)
    bytes += group.num_layers * group.bytes_per_token_and_layer;
  return bytes;
}

int64_t KvLayout::block_bytes() const { return block_tokens * bytes_per_token(); }

KvLayout MakeKvLayout(const ModelSpec& spec, DType dtype) {
  KvLayout layout;
  layout.dtype = dtype;
  layout.groups.push_back({.name = "latent",
                           .num_layers = spec.num_hidden_layers,
                           .bytes_per_token_and_layer = spec.kv_row_dim() * DTypeBytes(dtype)});
  return layout;
}

KvFingerprint MakeKvFingerprint(const ModelSpec& spec, const KvLayout& layout,
                                const std::string& model_digest, const std::string& kernel_family,
                                int64_t sampleable_vocab_size) {
  KvFingerprint fingerprint;
  fingerprint.text = absl::StrCat(
      "protocol: ", kKvProtocolVersion, "\nmodel: ", SpecText(spec), "\nweights: ", model_digest,
      "\nkernels: ", kernel_family, "\nsampling: sampleable_vocab_size=", sampleable_vocab_size,
      "\nkv: ", DTypeName(layout.dtype), " block_tokens=", layout.block_tokens);
  for (const CacheGroup& group : layout.groups) {
    absl::StrAppend(&fingerprint.text, " ", group.name, "=", group.num_layers, "x",
                    group.bytes_per_token_and_layer);
  }
  absl::StrAppend(&fingerprint.text, "\n");
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(fingerprint.text.data()), fingerprint.text.size(),
         digest);
  fingerprint.digest.assign(reinterpret_cast<const char*>(digest), sizeof(digest));
  return fingerprint;
}

}  // namespace sluice
