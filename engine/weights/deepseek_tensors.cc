#include "engine/weights/deepseek_tensors.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "engine/device/bf16.h"

namespace sluice {
namespace {

constexpr int64_t kScaleBlock = 128;
constexpr char kScaleSuffix[] = "_scale_inv";
constexpr char kLayersPrefix[] = "model.layers.";

int64_t Blocks(int64_t size) { return (size + kScaleBlock - 1) / kScaleBlock; }

// e4m3fn: bias 7, no infinities, NaN is all ones.
float DecodeE4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 0xf, mantissa = bits & 7;
  float value;
  if (exponent == 0xf && mantissa == 7) {
    value = std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -9);
  } else {
    value = std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  }
  return bits & 0x80 ? -value : value;
}

const std::array<float, 256>& E4m3Table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> t;
    for (int i = 0; i < 256; ++i) t[static_cast<size_t>(i)] = DecodeE4m3(static_cast<uint8_t>(i));
    return t;
  }();
  return table;
}

absl::Status Problem(const TensorView& view, absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat(view.file->path(), ": tensor '", view.info->name, "' ", problem));
}

// The number in "model.layers.N.rest"; -1 if the name has another form.
int64_t LayerOf(absl::string_view name) {
  if (!absl::ConsumePrefix(&name, kLayersPrefix)) return -1;
  int64_t layer;
  const size_t dot = name.find('.');
  if (dot == absl::string_view::npos || !absl::SimpleAtoi(name.substr(0, dot), &layer)) return -1;
  return layer;
}

bool Ignored(const ModelSpec& spec, absl::string_view name) {
  if (absl::EndsWith(name, "rotary_emb.inv_freq")) return true;
  if (spec.tie_word_embeddings && name == "lm_head.weight") return true;
  const int64_t layer = LayerOf(name);
  const int64_t mtp_layers = spec.num_nextn_predict_layers > 0 ? spec.num_nextn_predict_layers : 1;
  return layer >= spec.num_hidden_layers && layer < spec.num_hidden_layers + mtp_layers;
}

void AddFeedForward(std::vector<ExpectedTensor>* out, const std::string& prefix, int64_t hidden,
                    int64_t intermediate) {
  out->push_back({prefix + "gate_proj.weight", {intermediate, hidden}});
  out->push_back({prefix + "up_proj.weight", {intermediate, hidden}});
  out->push_back({prefix + "down_proj.weight", {hidden, intermediate}});
}

absl::Status CheckScales(const Checkpoint& checkpoint, const TensorView& weight) {
  const TensorView* scales = checkpoint.Find(weight.info->name + kScaleSuffix);
  if (scales == nullptr) {
    return Problem(weight, absl::StrCat("is F8_E4M3 but has no scales (", weight.info->name,
                                        kScaleSuffix, ")"));
  }
  if (weight.info->shape.size() != 2) return Problem(weight, "is F8_E4M3 but not a matrix");
  const std::vector<int64_t> shape = {Blocks(weight.info->shape[0]), Blocks(weight.info->shape[1])};
  if (scales->info->dtype != TensorDType::kF32 || scales->info->shape != shape) {
    return Problem(*scales, absl::StrCat("is ", TensorDTypeName(scales->info->dtype), " ",
                                         ShapeString(scales->info->shape), ", expected F32 ",
                                         ShapeString(shape), " for 128 x 128 blocks"));
  }
  return absl::OkStatus();
}

absl::Status CheckDType(const Checkpoint& checkpoint, const TensorView& view) {
  switch (view.info->dtype) {
    case TensorDType::kF32:
    case TensorDType::kBF16:
      return absl::OkStatus();
    case TensorDType::kF8E4M3:
      return CheckScales(checkpoint, view);
    case TensorDType::kF16:
      return Problem(view, "is F16: activations of this family overflow it; convert to BF16");
    default:
      return Problem(view, absl::StrCat("has dtype ", TensorDTypeName(view.info->dtype),
                                        "; supported are BF16, F32 and F8_E4M3 with scales"));
  }
}

}  // namespace

std::vector<ExpectedTensor> ExpectedTensors(const ModelSpec& spec) {
  const int64_t h = spec.hidden_size;
  const int64_t heads = spec.num_attention_heads;
  std::vector<ExpectedTensor> out;
  out.push_back({"model.embed_tokens.weight", {spec.vocab_size, h}});
  out.push_back({"model.norm.weight", {h}});
  if (!spec.tie_word_embeddings) out.push_back({"lm_head.weight", {spec.vocab_size, h}});
  for (int64_t i = 0; i < spec.num_hidden_layers; ++i) {
    const std::string layer = absl::StrCat(kLayersPrefix, i, ".");
    out.push_back({layer + "input_layernorm.weight", {h}});
    out.push_back({layer + "post_attention_layernorm.weight", {h}});
    const std::string attention = layer + "self_attn.";
    const int64_t q_rows = heads * spec.qk_head_dim();
    if (spec.q_lora_rank > 0) {
      out.push_back({attention + "q_a_proj.weight", {spec.q_lora_rank, h}});
      out.push_back({attention + "q_a_layernorm.weight", {spec.q_lora_rank}});
      out.push_back({attention + "q_b_proj.weight", {q_rows, spec.q_lora_rank}});
    } else {
      out.push_back({attention + "q_proj.weight", {q_rows, h}});
    }
    out.push_back({attention + "kv_a_proj_with_mqa.weight", {spec.kv_row_dim(), h}});
    out.push_back({attention + "kv_a_layernorm.weight", {spec.kv_lora_rank}});
    out.push_back({attention + "kv_b_proj.weight",
                   {heads * (spec.qk_nope_head_dim + spec.v_head_dim), spec.kv_lora_rank}});
    out.push_back({attention + "o_proj.weight", {h, heads * spec.v_head_dim}});
    const std::string mlp = layer + "mlp.";
    if (!spec.IsMoeLayer(i)) {
      AddFeedForward(&out, mlp, h, spec.intermediate_size);
      continue;
    }
    out.push_back({mlp + "gate.weight", {spec.n_routed_experts, h}});
    if (spec.gate == GateKind::kSigmoidNoAuxTc || spec.gate == GateKind::kSigmoidGreedy) {
      out.push_back({mlp + "gate.e_score_correction_bias",
                     {spec.n_routed_experts},
                     /*optional=*/spec.gate == GateKind::kSigmoidGreedy});
    }
    for (int64_t e = 0; e < spec.n_routed_experts; ++e) {
      AddFeedForward(&out, absl::StrCat(mlp, "experts.", e, "."), h, spec.moe_intermediate_size);
    }
    if (spec.n_shared_experts > 0) {
      AddFeedForward(&out, mlp + "shared_experts.", h,
                     spec.n_shared_experts * spec.moe_intermediate_size);
    }
  }
  return out;
}

absl::Status ValidateCheckpoint(const ModelSpec& spec, const Checkpoint& checkpoint) {
  absl::flat_hash_map<std::string, const ExpectedTensor*> expected_by_name;
  const std::vector<ExpectedTensor> all = ExpectedTensors(spec);
  for (const ExpectedTensor& expected : all) {
    expected_by_name[expected.name] = &expected;
    const TensorView* view = checkpoint.Find(expected.name);
    if (view == nullptr) {
      if (expected.optional) continue;
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.model_dir(), ": tensor '",
                                                     expected.name, "' ",
                                                     ShapeString(expected.shape), " is missing"));
    }
    if (view->info->shape != expected.shape) {
      return Problem(*view, absl::StrCat("has shape ", ShapeString(view->info->shape),
                                         ", config.json asks for ", ShapeString(expected.shape)));
    }
    SLUICE_RETURN_IF_ERROR(CheckDType(checkpoint, *view));
  }
  for (const TensorView& view : checkpoint.List()) {
    const std::string& name = view.info->name;
    if (expected_by_name.contains(name) || Ignored(spec, name)) continue;
    absl::string_view weight = name;
    if (absl::ConsumeSuffix(&weight, kScaleSuffix)) {
      const TensorView* scaled = checkpoint.Find(std::string(weight));
      if (expected_by_name.contains(weight) && scaled->info->dtype == TensorDType::kF8E4M3)
        continue;
    }
    return Problem(view, "is not part of the model that config.json describes");
  }
  return absl::OkStatus();
}

WeightReader::WeightReader(const Checkpoint& checkpoint, const std::string& name) {
  const TensorView* view = checkpoint.Find(name);
  SLUICE_CHECK(view != nullptr);
  dtype_ = view->info->dtype;
  data_ = view->data;
  const std::vector<int64_t>& shape = view->info->shape;
  SLUICE_CHECK(shape.size() == 1 || shape.size() == 2);
  columns_ = shape.back();
  if (shape.size() == 2) rows_ = shape.front();
  if (dtype_ == TensorDType::kF8E4M3) scales_ = checkpoint.Find(name + kScaleSuffix)->data;
}

// Offsets in the file are arbitrary, so values are copied out before use.
void WeightReader::Read(int64_t row, int64_t column, int64_t count, float* out) const {
  const int64_t first = row * columns_ + column;
  switch (dtype_) {
    case TensorDType::kF32:
      std::memcpy(out, data_ + first * 4, static_cast<size_t>(count) * 4);
      return;
    case TensorDType::kBF16:
      for (int64_t i = 0; i < count; ++i) {
        Bf16 value;
        std::memcpy(&value, data_ + (first + i) * 2, sizeof(value));
        out[i] = Bf16ToFloat(value);
      }
      return;
    case TensorDType::kF8E4M3: {
      const std::array<float, 256>& table = E4m3Table();
      const uint8_t* scale_row = scales_ + row / kScaleBlock * Blocks(columns_) * 4;
      for (int64_t i = 0; i < count; ++i) {
        float scale;  // called "inverse" in the file, and multiplied all the same
        std::memcpy(&scale, scale_row + (column + i) / kScaleBlock * 4, sizeof(scale));
        out[i] = table[data_[first + i]] * scale;
      }
      return;
    }
    default:
      SLUICE_CHECK(false && "dtype was refused by ValidateCheckpoint");
  }
}

std::vector<float> WeightReader::ReadAll() const {
  std::vector<float> all(static_cast<size_t>(rows_ * columns_));
  for (int64_t row = 0; row < rows_; ++row) ReadRow(row, all.data() + row * columns_);
  return all;
}

}  // namespace sluice
