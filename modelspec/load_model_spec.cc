// From config.json to a ModelSpec. Every dimension has an upper bound, far above any published
// model, so that products of them cannot overflow 64 bits.
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/read_file.h"
#include "common/sampling_ranges.h"
#include "common/status_macros.h"
#include "modelspec/json_fields.h"
#include "modelspec/json_object.h"
#include "modelspec/model_spec.h"

namespace sluice {
namespace {

constexpr size_t kMaxConfigBytes = 4 << 20;
// What the kernels turn in one go; published models have 64.
constexpr int64_t kMaxRopeHeadDim = 512;

void ReadArchitecture(JsonFields& fields, ModelSpec* spec) {
  const nlohmann::json* names = fields.Get("architectures");
  if (names == nullptr) return fields.Refuse("architectures", "is missing");
  if (!names->is_array() || names->size() != 1 || !names->front().is_string()) {
    return fields.Refuse("architectures", "must be a list of one name");
  }
  spec->architecture_name = names->front().get<std::string>();
  if (spec->architecture_name == "DeepseekV3ForCausalLM") {
    spec->architecture = Architecture::kDeepseekV3;
  } else if (spec->architecture_name == "DeepseekV2ForCausalLM" ||
             // Early DeepSeek-V2 revisions carry the name of the older models, which have no
             // latent.
             (spec->architecture_name == "DeepseekForCausalLM" && fields.Has("kv_lora_rank"))) {
    spec->architecture = Architecture::kDeepseekV2;
  } else {
    fields.RefuseUnimplemented(
        "architectures", absl::StrCat("names '", spec->architecture_name,
                                      "'; supported are DeepseekV2ForCausalLM (with kv_lora_rank) "
                                      "and DeepseekV3ForCausalLM"));
  }
}

void ReadDimensions(JsonFields& fields, ModelSpec* spec) {
  fields.Int("vocab_size", &spec->vocab_size, 1, 1 << 22);
  fields.Int("hidden_size", &spec->hidden_size, 1, 1 << 16);
  fields.Int("num_hidden_layers", &spec->num_hidden_layers, 1, 1024);
  fields.Int("num_attention_heads", &spec->num_attention_heads, 1, 1024);
  fields.Int("q_lora_rank", &spec->q_lora_rank, 1, 1 << 16, 0);
  fields.Int("kv_lora_rank", &spec->kv_lora_rank, 1, 1 << 16);
  fields.Int("qk_nope_head_dim", &spec->qk_nope_head_dim, 1, 4096);
  fields.Int("qk_rope_head_dim", &spec->qk_rope_head_dim, 2, kMaxRopeHeadDim);
  fields.Int("v_head_dim", &spec->v_head_dim, 1, 4096);
  fields.Int("intermediate_size", &spec->intermediate_size, 1, 1 << 20);
  fields.Int("max_position_embeddings", &spec->max_position_embeddings, 1, 1 << 26);
  fields.Int("num_nextn_predict_layers", &spec->num_nextn_predict_layers, 0, 16, 0);
  fields.Double("rms_norm_eps", &spec->rms_norm_eps, 1e-12, 1e-1, 1e-6);
  if (spec->qk_rope_head_dim % 2 != 0) {
    fields.Refuse("qk_rope_head_dim", "must be even: rotary embedding turns pairs");
  }
  // Newer writers repeat the sum.
  int64_t qk_head_dim = 0;
  fields.Int("qk_head_dim", &qk_head_dim, 1, 8192, spec->qk_head_dim());
  if (qk_head_dim != spec->qk_head_dim()) {
    fields.Refuse("qk_head_dim", "is not qk_nope_head_dim + qk_rope_head_dim");
  }
}

void ReadGate(JsonFields& fields, ModelSpec* spec) {
  const bool is_v3 = spec->architecture == Architecture::kDeepseekV3;
  std::string scoring_func;
  std::string topk_method;
  fields.String("scoring_func", &scoring_func, is_v3 ? "sigmoid" : "softmax");
  fields.String("topk_method", &topk_method, is_v3 ? "noaux_tc" : "greedy");
  if (scoring_func != "softmax" && scoring_func != "sigmoid") {
    return fields.RefuseUnimplemented(
        "scoring_func", absl::StrCat("is '", scoring_func, "'; supported are softmax and sigmoid"));
  }
  if (topk_method != "greedy" && topk_method != "group_limited_greedy" &&
      topk_method != "noaux_tc") {
    return fields.RefuseUnimplemented(
        "topk_method", absl::StrCat("is '", topk_method,
                                    "'; supported are greedy, group_limited_greedy and noaux_tc"));
  }
  if (topk_method == "greedy") {
    spec->gate = scoring_func == "softmax" ? GateKind::kSoftmaxGreedy : GateKind::kSigmoidGreedy;
  } else if (scoring_func == "softmax" && topk_method == "group_limited_greedy") {
    spec->gate = GateKind::kSoftmaxGroupLimited;
  } else if (scoring_func == "sigmoid" && topk_method == "noaux_tc") {
    spec->gate = GateKind::kSigmoidNoAuxTc;
  } else {
    fields.RefuseUnimplemented("topk_method",
                               absl::StrCat("'", topk_method, "' together with scoring_func '",
                                            scoring_func, "' is a gate of no DeepSeek model"));
  }
}

void ReadExperts(JsonFields& fields, ModelSpec* spec) {
  if (!fields.Has("n_routed_experts")) return;  // a dense model
  const bool is_v3 = spec->architecture == Architecture::kDeepseekV3;
  fields.Int("n_routed_experts", &spec->n_routed_experts, 1, 4096);
  fields.Int("n_shared_experts", &spec->n_shared_experts, 0, 64, 0);
  fields.Int("num_experts_per_tok", &spec->num_experts_per_tok, 1, spec->n_routed_experts);
  fields.Int("moe_intermediate_size", &spec->moe_intermediate_size, 1, 1 << 16);
  fields.Int("first_k_dense_replace", &spec->first_k_dense_replace, 0, spec->num_hidden_layers);
  fields.Int("moe_layer_freq", &spec->moe_layer_freq, 1, 1024, 1);
  fields.Int("n_group", &spec->n_group, 1, spec->n_routed_experts, 1);
  fields.Int("topk_group", &spec->topk_group, 1, spec->n_group, 1);
  fields.Bool("norm_topk_prob", &spec->norm_topk_prob, is_v3);
  fields.Double("routed_scaling_factor", &spec->routed_scaling_factor, 1e-6, 1e6,
                is_v3 ? 2.5 : 1.0);
  ReadGate(fields, spec);
  if (!fields.status().ok()) return;

  if (spec->n_routed_experts % spec->n_group != 0) {
    return fields.Refuse("n_group", absl::StrCat("(", spec->n_group,
                                                 ") must divide "
                                                 "n_routed_experts (",
                                                 spec->n_routed_experts, ")"));
  }
  if (spec->gate != GateKind::kSoftmaxGroupLimited && spec->gate != GateKind::kSigmoidNoAuxTc) {
    return;  // greedy gates look at no groups
  }
  const int64_t group_size = spec->n_routed_experts / spec->n_group;
  if (spec->num_experts_per_tok > spec->topk_group * group_size) {
    return fields.Refuse(
        "num_experts_per_tok",
        absl::StrCat("(", spec->num_experts_per_tok, ") is more than the ",
                     spec->topk_group * group_size, " experts of topk_group groups"));
  }
  if (spec->gate == GateKind::kSigmoidNoAuxTc && group_size < 2) {
    fields.Refuse("n_group", "leaves one expert a group; noaux_tc ranks groups by their best two");
  }
}

// `rope` is rope_scaling (hub files, theta beside it) or rope_parameters (theta inside).
void ReadRopeScaling(JsonFields& rope, RopeScaling* scaling) {
  const char* type_name = rope.Has("rope_type") ? "rope_type" : "type";
  std::string type;
  rope.String(type_name, &type);
  if (rope.Has("rope_type") && rope.Has("type")) {
    std::string other;
    rope.String("type", &other);
    if (other != type) rope.Refuse("type", absl::StrCat("'", other, "' contradicts rope_type"));
  }
  if (!rope.status().ok() || type == "default") return;
  if (type != "yarn") {
    return rope.RefuseUnimplemented(
        type_name, absl::StrCat("is '", type, "'; supported are yarn and default"));
  }
  // Variants of YaRN that no DeepSeek model uses and that would change every number.
  if (rope.Has("attention_factor")) {
    return rope.RefuseUnimplemented("attention_factor", "is not supported");
  }
  bool truncate = true;
  rope.Bool("truncate", &truncate, true);
  if (!truncate) return rope.RefuseUnimplemented("truncate", "false is not supported");

  scaling->enabled = true;
  rope.Double("factor", &scaling->factor, 1, 1e6);
  rope.Double("beta_fast", &scaling->beta_fast, 1e-3, 1e6, 32);
  rope.Double("beta_slow", &scaling->beta_slow, 1e-3, 1e6, 1);
  rope.Double("mscale", &scaling->mscale, 0, 100, 1);
  rope.Double("mscale_all_dim", &scaling->mscale_all_dim, 0, 100, 0);
  rope.Int("original_max_position_embeddings", &scaling->original_max_position_embeddings, 1,
           1 << 26);
  if (scaling->beta_fast < scaling->beta_slow) {
    rope.Refuse("beta_fast", "must not be less than beta_slow");
  }
}

void ReadRope(JsonFields& fields, ModelSpec* spec) {
  const nlohmann::json* scaling = fields.Get("rope_scaling");
  const nlohmann::json* parameters = fields.Get("rope_parameters");
  if (scaling != nullptr && parameters != nullptr) {
    return fields.Refuse("rope_parameters", "and rope_scaling are both given");
  }
  const char* name = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  const nlohmann::json* rope_object = parameters != nullptr ? parameters : scaling;
  fields.Double("rope_theta", &spec->rope_theta, 1.001, 1e12, 10000);
  if (rope_object == nullptr) return;  // plain RoPE
  if (!rope_object->is_object()) return fields.Refuse(name, "must be an object");
  JsonFields rope(*rope_object, absl::StrCat(name, "."));
  if (rope.Has("rope_theta")) rope.Double("rope_theta", &spec->rope_theta, 1.001, 1e12);
  ReadRopeScaling(rope, &spec->rope_scaling);
  fields.Keep(rope.status());
}

void ReadQuantization(JsonFields& fields, ModelSpec* spec) {
  const nlohmann::json* object = fields.Get("quantization_config");
  if (object == nullptr) return;
  if (!object->is_object()) return fields.Refuse("quantization_config", "must be an object");
  JsonFields quantization(*object, "quantization_config.");
  const auto require = [&](const char* name, std::set<std::string> supported,
                           std::optional<std::string> fallback) {
    std::string value;
    quantization.String(name, &value, std::move(fallback));
    if (quantization.status().ok() && supported.count(value) == 0) {
      quantization.RefuseUnimplemented(
          name, absl::StrCat("is '", value, "'; supported is ", *supported.begin()));
    }
  };
  require("quant_method", {"fp8"}, std::nullopt);
  require("fmt", {"e4m3"}, "e4m3");
  require("activation_scheme", {"dynamic"}, "dynamic");
  // ue8m0: the scales are powers of two, still stored as F32 and multiplied the same way.
  require("scale_fmt", {"float", "ue8m0"}, "float");
  const nlohmann::json* block = quantization.Get("weight_block_size");
  if (block == nullptr) {
    quantization.RefuseUnimplemented("weight_block_size", "is missing; only block scales work");
  } else if (*block != nlohmann::json::array({128, 128})) {
    quantization.RefuseUnimplemented(
        "weight_block_size", absl::StrCat("is ", block->dump(), "; supported is [128,128]"));
  }
  spec->quantization = "fp8";
  fields.Keep(quantization.status());
}

// Switches that would change the arithmetic and that no DeepSeek model turns on.
void ReadFixedChoices(JsonFields& fields, ModelSpec* spec) {
  std::string hidden_act;
  fields.String("hidden_act", &hidden_act, "silu");
  if (hidden_act != "silu") {
    fields.RefuseUnimplemented("hidden_act",
                               absl::StrCat("is '", hidden_act, "'; supported is silu"));
  }
  for (const char* name : {"attention_bias", "mlp_bias", "tie_word_embeddings"}) {
    bool on = false;
    fields.Bool(name, &on, false);
    if (on) fields.RefuseUnimplemented(name, "must be false");
  }
  spec->tie_word_embeddings = false;

  std::string torch_dtype;
  fields.String("torch_dtype", &torch_dtype, "");
  std::string dtype;
  fields.String("dtype", &dtype, torch_dtype);
  if (!torch_dtype.empty() && dtype != torch_dtype) {
    fields.Refuse("dtype", absl::StrCat("'", dtype, "' contradicts torch_dtype"));
  }
  // Activations of these models exceed float16's range.
  if (!dtype.empty() && dtype != "bfloat16" && dtype != "float32") {
    fields.RefuseUnimplemented(
        fields.Has("dtype") ? "dtype" : "torch_dtype",
        absl::StrCat("is '", dtype, "'; supported are bfloat16 and float32"));
  }
}

absl::StatusOr<GenerationDefaults> ParseGenerationDefaults(absl::string_view json,
                                                           int64_t vocab_size,
                                                           std::vector<int64_t>* eos_token_ids) {
  SLUICE_ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(json));
  JsonFields fields(object);
  GenerationDefaults defaults;
  bool do_sample = true;
  fields.Bool("do_sample", &do_sample, true);
  fields.Double("temperature", &defaults.temperature, kTemperatureRange.low, kTemperatureRange.high,
                1);
  fields.Double("top_p", &defaults.top_p, 1e-9, 1, 1);
  fields.Int("top_k", &defaults.top_k, -1, 1 << 22, 0);
  fields.Double("min_p", &defaults.min_p, kMinPRange.low, kMinPRange.high, 0);
  fields.Double("repetition_penalty", &defaults.repetition_penalty, kRepetitionPenaltyRange.low,
                kRepetitionPenaltyRange.high, 1);
  if (!do_sample) defaults.temperature = 0;
  if (defaults.top_k < 0) defaults.top_k = 0;
  fields.IntOrList("eos_token_id", eos_token_ids, 0, vocab_size - 1);
  SLUICE_RETURN_IF_ERROR(fields.status());
  return defaults;
}

std::string GenerationConfigPath(const std::string& model_dir) {
  return absl::StrCat(model_dir, "/generation_config.json");
}

}  // namespace

absl::StatusOr<ModelSpec> ParseModelSpec(absl::string_view config_json) {
  SLUICE_ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(config_json));
  JsonFields fields(object);
  ModelSpec spec;
  ReadArchitecture(fields, &spec);
  SLUICE_RETURN_IF_ERROR(fields.status());  // the other fields mean something else elsewhere
  ReadDimensions(fields, &spec);
  SLUICE_RETURN_IF_ERROR(fields.status());  // later ranges depend on these
  ReadExperts(fields, &spec);
  ReadRope(fields, &spec);
  ReadQuantization(fields, &spec);
  ReadFixedChoices(fields, &spec);
  fields.Int("bos_token_id", &spec.bos_token_id, 0, spec.vocab_size - 1, -1);
  fields.IntOrList("eos_token_id", &spec.eos_token_ids, 0, spec.vocab_size - 1);
  SLUICE_RETURN_IF_ERROR(fields.status());
  return spec;
}

absl::StatusOr<ModelSpec> LoadModelSpec(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/config.json");
  SLUICE_ASSIGN_OR_RETURN(const std::string config, ReadFile(path, kMaxConfigBytes));
  absl::StatusOr<ModelSpec> spec = ParseModelSpec(config);
  if (!spec.ok()) return Annotate(spec.status(), path);

  const std::string generation_path = GenerationConfigPath(model_dir);
  const absl::StatusOr<std::string> generation = ReadFile(generation_path, kMaxConfigBytes);
  if (absl::IsNotFound(generation.status())) return spec;
  SLUICE_RETURN_IF_ERROR(generation.status());
  SLUICE_RETURN_IF_ERROR(Annotate(
      ParseGenerationDefaults(*generation, spec->vocab_size, &spec->eos_token_ids).status(),
      generation_path));
  return spec;
}

absl::StatusOr<GenerationDefaults> LoadGenerationDefaults(const std::string& model_dir) {
  const std::string path = GenerationConfigPath(model_dir);
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return GenerationDefaults{};
  SLUICE_RETURN_IF_ERROR(text.status());
  std::vector<int64_t> eos_token_ids;
  absl::StatusOr<GenerationDefaults> defaults =
      ParseGenerationDefaults(*text, int64_t{1} << 22, &eos_token_ids);
  if (!defaults.ok()) return Annotate(defaults.status(), path);
  return defaults;
}

}  // namespace sluice
