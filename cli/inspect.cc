// sluice inspect: what a checkpoint is, and what it costs.
#include <CLI/CLI.hpp>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/write_manifest.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/runtime/memory_fit.h"
#include "engine/weights/checkpoint.h"
#include "modelspec/kv_layout.h"
#include "modelspec/model_spec.h"
#include "tokenizer/chat_encoder.h"
#include "tokenizer/tokenizer.h"

namespace sluice::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  sluice inspect models/deepseek-tiny
  sluice inspect models/deepseek-tiny --tensors
  sluice inspect /models/DeepSeek-V3 --json | jq .parameters
  sluice inspect models/deepseek-tiny --write-manifest
config.json is enough: weights and tokenizer are described if they are there.)";

using Json = nlohmann::ordered_json;

const char* GateName(GateKind gate) {
  switch (gate) {
    case GateKind::kSoftmaxGreedy:
      return "softmax, greedy";
    case GateKind::kSoftmaxGroupLimited:
      return "softmax, group limited";
    case GateKind::kSigmoidGreedy:
      return "sigmoid, greedy";
    case GateKind::kSigmoidNoAuxTc:
      return "sigmoid, noaux_tc";
  }
  return "unknown";
}

Json DescribeSpec(const ModelSpec& spec) {
  Json dimensions = {{"hidden_size", spec.hidden_size},
                     {"num_hidden_layers", spec.num_hidden_layers},
                     {"num_attention_heads", spec.num_attention_heads},
                     {"q_lora_rank", spec.q_lora_rank},
                     {"kv_lora_rank", spec.kv_lora_rank},
                     {"qk_nope_head_dim", spec.qk_nope_head_dim},
                     {"qk_rope_head_dim", spec.qk_rope_head_dim},
                     {"v_head_dim", spec.v_head_dim},
                     {"intermediate_size", spec.intermediate_size},
                     {"vocab_size", spec.vocab_size},
                     {"max_position_embeddings", spec.max_position_embeddings},
                     {"num_nextn_predict_layers", spec.num_nextn_predict_layers}};
  Json experts = nullptr;
  if (spec.n_routed_experts > 0) {
    experts = {{"n_routed_experts", spec.n_routed_experts},
               {"n_shared_experts", spec.n_shared_experts},
               {"num_experts_per_tok", spec.num_experts_per_tok},
               {"moe_intermediate_size", spec.moe_intermediate_size},
               {"first_k_dense_replace", spec.first_k_dense_replace},
               {"n_group", spec.n_group},
               {"topk_group", spec.topk_group},
               {"gate", GateName(spec.gate)}};
  }
  return {{"architecture", spec.architecture_name},
          {"quantization", spec.quantization.empty() ? "none" : spec.quantization},
          {"dimensions", dimensions},
          {"experts", experts},
          {"parameters", spec.TotalParameters()},
          {"activated_parameters_per_token", spec.ActivatedParameters()},
          {"flops_per_token", spec.FlopsPerToken()},
          {"weight_bytes",
           {{"bf16", WeightBytes(spec, DType::kBF16)}, {"f32", WeightBytes(spec, DType::kF32)}}},
          {"kv_bytes_per_token",
           {{"bf16", MakeKvLayout(spec, DType::kBF16).bytes_per_token()},
            {"f32", MakeKvLayout(spec, DType::kF32).bytes_per_token()}}},
          {"kv_bytes_per_block_bf16", MakeKvLayout(spec, DType::kBF16).block_bytes()}};
}

// Null if the folder has none.
absl::StatusOr<Json> DescribeTokenizer(const std::string& model_dir) {
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(model_dir);
  if (absl::IsNotFound(tokenizer.status())) return Json(nullptr);
  SLUICE_RETURN_IF_ERROR(tokenizer.status());
  const auto encoder = ChatEncoder::Create(**tokenizer);
  Json json = {{"vocab_size", (*tokenizer)->vocab_size()},
               {"chat_format", encoder.ok() ? std::string(ChatFormatName((*encoder)->format()))
                                            : std::string(encoder.status().message())}};
  return json;
}

// Null if the folder has no weights.
absl::StatusOr<Json> DescribeWeights(const std::string& model_dir, bool list_tensors) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model_dir);
  if (absl::IsNotFound(checkpoint.status())) return Json(nullptr);
  SLUICE_RETURN_IF_ERROR(checkpoint.status());
  int64_t num_bytes = 0;
  std::map<std::string, int64_t> tensors_of_dtype;
  Json list = Json::array();
  for (const TensorView& tensor : (*checkpoint)->List()) {
    const TensorInfo& info = *tensor.info;
    num_bytes += static_cast<int64_t>(info.end - info.begin);
    ++tensors_of_dtype[TensorDTypeName(info.dtype)];
    if (!list_tensors) continue;
    list.push_back({{"name", info.name},
                    {"dtype", TensorDTypeName(info.dtype)},
                    {"shape", info.shape},
                    {"bytes", info.end - info.begin}});
  }
  Json json = {{"files", (*checkpoint)->files().size()},
               {"bytes", num_bytes},
               {"tensors_of_dtype", tensors_of_dtype}};
  if (list_tensors) json["tensors"] = list;
  return json;
}

// "671,026,419,200"
std::string WithCommas(int64_t number) {
  std::string digits = absl::StrCat(number);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) digits.insert(i, ",");
  return digits;
}

void PrintValue(const std::string& indent, const std::string& name, const Json& value) {
  if (value.is_null()) return;
  if (value.is_object()) {
    std::cout << indent << name << "\n";
    for (const auto& [key, inner] : value.items()) PrintValue(indent + "  ", key, inner);
    return;
  }
  if (value.is_array()) {
    for (const Json& tensor : value) {
      std::cout << indent
                << absl::StrFormat("%-8s %-16s %s\n", tensor.at("dtype").get<std::string>(),
                                   tensor.at("shape").dump(), tensor.at("name").get<std::string>());
    }
    return;
  }
  std::string text = value.is_string()           ? value.get<std::string>()
                     : value.is_number_integer() ? WithCommas(value.get<int64_t>())
                                                 : absl::StrFormat("%.4g", value.get<double>());
  std::cout << absl::StrFormat("%s%-*s %s\n", indent, 34 - static_cast<int>(indent.size()), name,
                               text);
}

absl::Status Inspect(const std::string& model_dir, bool list_tensors, bool as_json) {
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(model_dir));
  Json json = DescribeSpec(spec);
  SLUICE_ASSIGN_OR_RETURN(json["tokenizer"], DescribeTokenizer(model_dir));
  SLUICE_ASSIGN_OR_RETURN(json["weights"], DescribeWeights(model_dir, list_tensors));
  if (as_json) {
    std::cout << json.dump(1) << "\n";
    return absl::OkStatus();
  }
  for (const auto& [key, value] : json.items()) PrintValue("", key, value);
  return absl::OkStatus();
}

}  // namespace

void AddInspect(CLI::App* app, int* exit_code) {
  CLI::App* const command =
      app->add_subcommand("inspect", "Dimensions, parameters and KV cost of a checkpoint");
  auto model_dir = std::make_shared<std::string>();
  auto list_tensors = std::make_shared<bool>(false);
  auto as_json = std::make_shared<bool>(false);
  auto write_manifest = std::make_shared<bool>(false);
  command->add_option("model", *model_dir, "Model folder")->required();
  command->add_flag("--tensors", *list_tensors, "List every tensor");
  command->add_flag("--json", *as_json, "As one JSON object");
  command
      ->add_flag("--write-manifest", *write_manifest,
                 "Write sluice-manifest.json beside the weights: digests of all files and tensors, "
                 "and a golden answer, which workers check when they load the model")
      ->excludes("--json")
      ->excludes("--tensors");
  command->footer(kExamples);
  command->callback([=] {
    InitLogging({"sluice", LogLevel::kWarning, false});
    const absl::Status status = *write_manifest ? WriteModelManifest(*model_dir)
                                                : Inspect(*model_dir, *list_tensors, *as_json);
    *exit_code = status.ok() ? 0 : Fail(status);
  });
}

}  // namespace sluice::cli
