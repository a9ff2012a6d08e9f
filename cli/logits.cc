// sluice logits: what the model says after each token, for comparing engines and settings.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "common/log.h"
#include "common/progress_bar.h"
#include "common/status_macros.h"
#include "engine/kv/kv_store.h"
#include "engine/model/deepseek_model.h"
#include "engine/model/deepseek_weights.h"
#include "modelspec/model_spec.h"

namespace sluice::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  sluice logits models/deepseek-tiny --tokens 0,4084,1010,3,4085 --top 5
  sluice logits models/deepseek-tiny --tokens 0,4084 --dtype f32 --isa portable --all > logits.json
The answer is one JSON object with an entry per position; "top" holds [token, log-probability].)";

// Positions computed at once; bounds the memory for their logits.
constexpr int kPositionsPerStep = 64;

struct LogitsFlags {
  EngineFlags engine;
  std::string tokens;
  int top = 10;
  bool all = false;
};

using Json = nlohmann::ordered_json;

double LogSumExp(absl::Span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

Json DescribePosition(int position, TokenId token, absl::Span<const float> logits,
                      const LogitsFlags& flags) {
  const double log_sum = LogSumExp(logits);
  Json json = {{"position", position}, {"token", token}, {"logsumexp", log_sum}};
  if (flags.all) {
    json["logits"] = std::vector<float>(logits.begin(), logits.end());
    return json;
  }
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t count = std::min(order.size(), static_cast<size_t>(flags.top));
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](TokenId a, TokenId b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  json["top"] = Json::array();
  for (size_t i = 0; i < count; ++i) {
    json["top"].push_back(Json::array({order[i], logits[order[i]] - log_sum}));
  }
  return json;
}

absl::Status Logits(const LogitsFlags& flags) {
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(flags.engine.model_dir));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                          ParseTokenIds(flags.tokens, spec.vocab_size));
  if (static_cast<int64_t>(tokens.size()) > spec.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tokens: the model has ", spec.max_position_embeddings, " positions"));
  }
  DeepseekLoadOptions load;
  load.model_dir = flags.engine.model_dir;
  load.dtype = DTypeOf(flags.engine);
  load.isa = flags.engine.isa;
  load.num_threads = flags.engine.threads;
  load.on_progress = [](double fraction) { ShowProgress("loading", fraction); };
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<DeepseekWeights> weights,
                          LoadDeepseekWeights(spec, load));
  const std::string kernels = weights->backend->kernel_family();

  const int num_tokens = static_cast<int>(tokens.size());
  const int num_blocks = (num_tokens + kBlockTokens - 1) / kBlockTokens;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<KvStore> kv_store,
                          KvStore::Create(MakeKvLayout(spec, load.dtype), num_blocks));
  const std::unique_ptr<Model> model = CreateDeepseekModel(std::move(weights), kv_store.get());
  std::vector<BlockId> block_table;
  for (int i = 0; i < num_blocks; ++i) block_table.emplace_back(i);

  // Written position by position: all logits of a long text would not fit in memory as one
  // document.
  std::cout << "{\"model\": " << Json(flags.engine.model_dir).dump()
            << ", \"dtype\": " << Json(flags.engine.dtype).dump()
            << ", \"kernels\": " << Json(kernels).dump() << ", \"positions\": [";
  std::vector<float> logits;  // [kPositionsPerStep, vocab_size]
  for (int begin = 0; begin < num_tokens; begin += kPositionsPerStep) {
    const int count = std::min(kPositionsPerStep, num_tokens - begin);
    logits.resize(static_cast<size_t>(count) * spec.vocab_size);
    SequenceSlice slice;
    slice.tokens = absl::MakeConstSpan(tokens).subspan(begin, count);
    slice.start_position = begin;
    slice.block_table = block_table;
    slice.num_logit_rows = count;
    model->Forward({slice}, absl::MakeSpan(logits));
    for (int row = 0; row < count; ++row) {
      const absl::Span<const float> of_position =
          absl::MakeConstSpan(logits).subspan(row * spec.vocab_size, spec.vocab_size);
      std::cout << (begin + row == 0 ? "\n " : ",\n ")
                << DescribePosition(begin + row, tokens[begin + row], of_position, flags).dump();
    }
  }
  std::cout << "\n]}" << std::endl;
  return absl::OkStatus();
}

}  // namespace

void AddLogits(CLI::App* app, int* exit_code) {
  CLI::App* const command =
      app->add_subcommand("logits", "Logits of given tokens, as JSON (no cluster needed)");
  auto flags = std::make_shared<LogitsFlags>();
  AddEngineFlags(command, &flags->engine);
  command->add_option("--tokens", flags->tokens, "Token ids, separated by commas")->required();
  command->add_option("--top", flags->top, "How many log-probabilities per position")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_flag("--all", flags->all, "All logits of every position instead");
  command->footer(kExamples);
  command->callback([flags, exit_code] {
    InitLogging({"sluice", LogLevel::kWarning, false});
    const absl::Status status = Logits(*flags);
    *exit_code = status.ok() ? 0 : Fail(status);
  });
}

}  // namespace sluice::cli
