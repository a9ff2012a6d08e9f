#include "engine/model/deepseek_weights.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/device/cpu/cpu_backend.h"
#include "engine/weights/checkpoint.h"
#include "engine/weights/checkpoint_digest.h"
#include "engine/weights/deepseek_tensors.h"
#include "engine/weights/read_ahead.h"

namespace sluice {
namespace {

class Loader {
 public:
  Loader(const ModelSpec& spec, const Checkpoint& checkpoint, Backend& backend)
      : spec_(spec), checkpoint_(checkpoint), backend_(backend) {}

  MatrixSource Source(const std::string& name) const {
    const WeightReader reader(checkpoint_, name);
    return {reader.rows(), reader.columns(),
            [reader](int64_t row, float* out) { reader.ReadRow(row, out); }};
  }
  std::unique_ptr<PackedMatrix> Matrix(const std::string& name) const {
    return backend_.Pack(Source(name));
  }
  std::unique_ptr<PackedMatrix> MatrixF32(const std::string& name) const {
    return backend_.PackF32(Source(name));
  }
  std::unique_ptr<PackedMatrix> Table(const std::string& name) const {
    return backend_.PackTable(Source(name));
  }
  std::vector<float> Vector(const std::string& name) const {
    return WeightReader(checkpoint_, name).ReadAll();
  }

  FeedForwardWeights FeedForward(const std::string& prefix) const {
    return {
        backend_.PackGateUp(Source(prefix + "gate_proj.weight"), Source(prefix + "up_proj.weight")),
        Matrix(prefix + "down_proj.weight")};
  }

  DeepseekAttentionWeights Attention(const std::string& prefix) const {
    DeepseekAttentionWeights out;
    const bool compressed = spec_.q_lora_rank > 0;
    out.q_kv_a =
        backend_.Pack(Stacked(Source(prefix + (compressed ? "q_a_proj.weight" : "q_proj.weight")),
                              Source(prefix + "kv_a_proj_with_mqa.weight")));
    if (compressed) {
      out.q_a_norm = Vector(prefix + "q_a_layernorm.weight");
      out.q_b = Matrix(prefix + "q_b_proj.weight");
    }
    out.kv_a_norm = Vector(prefix + "kv_a_layernorm.weight");
    // Rows of kv_b_proj per head: k_nope, then v.
    const WeightReader kv_b(checkpoint_, prefix + "kv_b_proj.weight");
    const int64_t nope = spec_.qk_nope_head_dim, v = spec_.v_head_dim;
    for (int64_t h = 0; h < spec_.num_attention_heads; ++h) {
      const int64_t k_row = h * (nope + v);
      out.w_uk.push_back(backend_.Pack({spec_.kv_lora_rank, nope, [=](int64_t row, float* to) {
                                          for (int64_t i = 0; i < nope; ++i) {
                                            to[i] = kv_b.At(k_row + i, row);
                                          }
                                        }}));
      out.w_uv.push_back(backend_.Pack({v, spec_.kv_lora_rank, [=](int64_t row, float* to) {
                                          kv_b.ReadRow(k_row + nope + row, to);
                                        }}));
    }
    out.o = Matrix(prefix + "o_proj.weight");
    return out;
  }

  DeepseekLayerWeights Layer(int64_t index) const {
    const std::string prefix = absl::StrCat("model.layers.", index, ".");
    DeepseekLayerWeights out;
    out.attention = Attention(prefix + "self_attn.");
    out.attention.input_norm = Vector(prefix + "input_layernorm.weight");
    out.post_attention_norm = Vector(prefix + "post_attention_layernorm.weight");
    const std::string mlp = prefix + "mlp.";
    if (!spec_.IsMoeLayer(index)) {
      out.shared = std::make_unique<FeedForwardWeights>(FeedForward(mlp));
      return out;
    }
    out.router = MatrixF32(mlp + "gate.weight");
    const std::string bias = mlp + "gate.e_score_correction_bias";
    if (checkpoint_.Find(bias) != nullptr) out.router_bias = Vector(bias);
    for (int64_t e = 0; e < spec_.n_routed_experts; ++e) {
      out.experts.push_back(FeedForward(absl::StrCat(mlp, "experts.", e, ".")));
    }
    if (spec_.n_shared_experts > 0) {
      out.shared = std::make_unique<FeedForwardWeights>(FeedForward(mlp + "shared_experts."));
    }
    return out;
  }

 private:
  static MatrixSource Stacked(const MatrixSource& top, const MatrixSource& bottom) {
    return {top.rows + bottom.rows, top.columns, [top, bottom](int64_t row, float* out) {
              if (row < top.rows) {
                top.read_row(row, out);
              } else {
                bottom.read_row(row - top.rows, out);
              }
            }};
  }

  const ModelSpec& spec_;
  const Checkpoint& checkpoint_;
  Backend& backend_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeepseekWeights>> LoadDeepseekWeights(
    const ModelSpec& spec, const DeepseekLoadOptions& options) {
  SLUICE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa(options.isa));
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint,
                          Checkpoint::Open(options.model_dir));
  auto backend = std::make_unique<CpuBackend>(options.dtype, isa, options.num_threads,
                                              options.compute_niceness);
  std::unique_ptr<CheckpointVerifier> verifier;  // reads beside us; stops when we return
  if (options.manifest != nullptr) {
    SLUICE_ASSIGN_OR_RETURN(verifier, CheckpointVerifier::Start(*checkpoint, *options.manifest,
                                                                backend->num_threads()));
  }
  SLUICE_RETURN_IF_ERROR(ValidateCheckpoint(spec, *checkpoint));
  const auto progress = [&](double fraction) {
    if (options.on_progress) options.on_progress(fraction);
  };
  progress(0);
  auto weights = std::make_unique<DeepseekWeights>();
  weights->spec = spec;
  SLUICE_ASSIGN_OR_RETURN(weights->model_digest, ModelDigest(*checkpoint));
  weights->backend = std::move(backend);

  const Loader loader(spec, *checkpoint, *weights->backend);
  const double steps = static_cast<double>(spec.num_hidden_layers) + 2;
  ReadAhead ahead(checkpoint.get());
  const auto want_layer = [&](int64_t i) {
    if (i < spec.num_hidden_layers) return ahead.Want(absl::StrCat("model.layers.", i, "."));
    ahead.Want("model.norm.");
    ahead.Want(spec.tie_word_embeddings ? "model.embed_tokens." : "lm_head.");
  };
  ahead.Want("model.embed_tokens.");
  want_layer(0);
  weights->embedding = loader.Table("model.embed_tokens.weight");
  progress(1 / steps);
  for (int64_t i = 0; i < spec.num_hidden_layers; ++i) {
    if (verifier != nullptr && verifier->failed()) return verifier->Finish();
    want_layer(i + 1);  // from the disk, while this one is packed
    weights->layers.push_back(loader.Layer(i));
    checkpoint->ReleasePages();
    progress(static_cast<double>(i + 2) / steps);
  }
  weights->final_norm = loader.Vector("model.norm.weight");
  weights->lm_head =
      loader.Matrix(spec.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  if (verifier != nullptr) SLUICE_RETURN_IF_ERROR(verifier->Finish());
  progress(1);
  return weights;
}

}  // namespace sluice
