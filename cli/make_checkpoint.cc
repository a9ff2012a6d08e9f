// sluice make-checkpoint: a model folder of random weights in a real model's geometry, to measure
// with.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/installation.h"
#include "common/processors.h"
#include "common/progress_bar.h"
#include "common/read_file.h"
#include "common/status_macros.h"
#include "engine/weights/random_checkpoint.h"
#include "modelspec/model_spec.h"

namespace sluice::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kExamples[] = R"(Examples:
  sluice make-checkpoint --preset v2-lite --layers 8 --out /tmp/lite-8
  sluice make-checkpoint --config /models/DeepSeek-V3/config.json --layers 4 --out /tmp/v3-4
  sluice up --model /tmp/lite-8
The tokenizer is copied from --tokenizer; the vocabulary beyond it exists, but is never sampled.
8 layers of V2-Lite are 4.6 billion parameters, 9.2 GB.)";

// The published geometry of DeepSeek-V2-Lite.
constexpr char kV2Lite[] = R"({
  "architectures": ["DeepseekV2ForCausalLM"],
  "model_type": "deepseek_v2",
  "attention_bias": false,
  "hidden_act": "silu",
  "hidden_size": 2048,
  "intermediate_size": 10944,
  "moe_intermediate_size": 1408,
  "num_hidden_layers": 27,
  "num_attention_heads": 16,
  "num_key_value_heads": 16,
  "q_lora_rank": null,
  "kv_lora_rank": 512,
  "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64,
  "v_head_dim": 128,
  "n_routed_experts": 64,
  "n_shared_experts": 2,
  "num_experts_per_tok": 6,
  "first_k_dense_replace": 1,
  "moe_layer_freq": 1,
  "n_group": 1,
  "topk_group": 1,
  "topk_method": "greedy",
  "scoring_func": "softmax",
  "norm_topk_prob": false,
  "routed_scaling_factor": 1.0,
  "rms_norm_eps": 1e-06,
  "rope_theta": 10000,
  "rope_scaling": {
    "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096
  },
  "max_position_embeddings": 163840,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "vocab_size": 102400,
  "bos_token_id": 100000,
  "eos_token_id": 100001
})";

struct MakeCheckpointFlags {
  std::string preset;
  std::string config_path;
  std::string tokenizer_dir;
  std::string out;
  int64_t layers = 0;
  uint64_t seed = 1;
  int threads = 0;
};

using Json = nlohmann::ordered_json;

constexpr size_t kMaxJsonBytes = 4 << 20;

absl::StatusOr<Json> ReadJsonFile(const fs::path& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path.string(), kMaxJsonBytes));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": is not a JSON object"));
  }
  return json;
}

// The geometry asked for, with the token ids of the tokenizer that goes with it.
absl::StatusOr<Json> Config(const MakeCheckpointFlags& flags) {
  Json config;
  if (!flags.config_path.empty()) {
    SLUICE_ASSIGN_OR_RETURN(config, ReadJsonFile(flags.config_path));
  } else {
    config = Json::parse(kV2Lite);
  }
  if (flags.layers > 0) config["num_hidden_layers"] = flags.layers;
  config["torch_dtype"] = "bfloat16";
  config["num_nextn_predict_layers"] = 0;
  config.erase("quantization_config");
  SLUICE_ASSIGN_OR_RETURN(const Json tokenizer_config,
                          ReadJsonFile(fs::path(flags.tokenizer_dir) / "config.json"));
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    if (tokenizer_config.contains(key)) config[key] = tokenizer_config[key];
  }
  return config;
}

absl::Status CopyTokenizer(const MakeCheckpointFlags& flags) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                           "generation_config.json"}) {
    const fs::path from = fs::path(flags.tokenizer_dir) / name;
    std::error_code error;
    if (!fs::exists(from, error)) continue;
    if (!fs::copy_file(from, fs::path(flags.out) / name, error)) {
      return absl::UnavailableError(
          absl::StrCat("cannot copy ", from.string(), ": ", error.message()));
    }
  }
  return absl::OkStatus();
}

// One line, rewritten in place; nothing unless stderr is a terminal.
absl::Status MakeCheckpoint(MakeCheckpointFlags flags) {
  if (flags.tokenizer_dir.empty()) flags.tokenizer_dir = FindTinyModel();
  if (flags.tokenizer_dir.empty()) {
    return absl::NotFoundError(
        "the model that comes with Sluice is not beside this program; name a model folder with "
        "--tokenizer");
  }
  SLUICE_ASSIGN_OR_RETURN(const Json config, Config(flags));
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, ParseModelSpec(config.dump()));
  std::error_code error;
  fs::create_directories(flags.out, error);
  if (error) return absl::UnavailableError(absl::StrCat(flags.out, ": ", error.message()));
  if (!fs::is_empty(flags.out, error)) {
    return absl::AlreadyExistsError(absl::StrCat(flags.out, ": is not an empty folder"));
  }
  RandomCheckpointOptions options;
  options.dir = flags.out;
  options.seed = flags.seed;
  options.num_threads = flags.threads > 0 ? flags.threads : AvailableProcessors();
  options.on_progress = [](double fraction) { ShowProgress("writing", fraction); };
  SLUICE_RETURN_IF_ERROR(WriteRandomCheckpoint(spec, options));
  SLUICE_RETURN_IF_ERROR(CopyTokenizer(flags));
  // Last, so that an interrupted folder is not mistaken for a model.
  std::ofstream file(fs::path(flags.out) / "config.json");
  file << config.dump(2) << "\n";
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat(flags.out, ": cannot write config.json"));
  std::cout << absl::StrFormat("%s: %.2f billion parameters, %.2f GB\n", flags.out,
                               static_cast<double>(spec.TotalParameters()) / 1e9,
                               static_cast<double>(RandomCheckpointBytes(spec)) / 1e9);
  return absl::OkStatus();
}

}  // namespace

void AddMakeCheckpoint(CLI::App* app, int* exit_code) {
  CLI::App* command = app->add_subcommand("make-checkpoint", "Write a model of random weights.");
  auto flags = std::make_shared<MakeCheckpointFlags>();
  CLI::Option* preset =
      command->add_option("--preset", flags->preset, "A published geometry: v2-lite")
          ->check(CLI::IsMember({"v2-lite"}));
  CLI::Option* config =
      command->add_option("--config", flags->config_path, "Or any DeepSeek config.json")
          ->excludes(preset);
  command->add_option("--layers", flags->layers, "Layers instead of the geometry's")
      ->check(CLI::Range(1, 1000));
  command->add_option("--out", flags->out, "Folder to write; new or empty")->required();
  command->add_option(
      "--tokenizer", flags->tokenizer_dir,
      "Model folder to take a tokenizer from; unset: the model that comes with Sluice");
  command->add_option("--seed", flags->seed, "Of the random weights")->capture_default_str();
  command->add_option("--threads", flags->threads, "Threads; 0: all")->check(CLI::Range(0, 1024));
  command->footer(kExamples);
  command->callback([=] {
    if (preset->empty() && config->empty()) {
      *exit_code = Fail(absl::InvalidArgumentError("make-checkpoint: --preset or --config?"));
      return;
    }
    const absl::Status status = MakeCheckpoint(*flags);
    if (!status.ok()) *exit_code = Fail(status);
  });
}

}  // namespace sluice::cli
