// sluice generate: the engine alone, without a cluster.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/progress_bar.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "engine/runtime/engine.h"
#include "modelspec/model_spec.h"
#include "tokenizer/chat_encoder.h"
#include "tokenizer/tokenizer.h"

namespace sluice::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  sluice generate models/deepseek-tiny --chat "Who are you?"
  sluice generate models/deepseek-tiny --prompt "Once upon a time" --max-tokens 50 --temperature 0.7
  sluice generate models/deepseek-tiny --tokens 0,4084,1010,3,4085 --dtype f32 --logprobs 3
Greedy unless --temperature says otherwise. The answer is one JSON object.)";

struct GenerateFlags {
  EngineFlags engine;
  std::string tokens;
  std::string prompt;
  std::string chat;
  int max_tokens = 128;
  double temperature = 0;
  double top_p = 1;
  int top_k = 0;
  uint64_t seed = 0;
  bool ignore_eos = false;
  std::optional<int> logprobs;
};

using Json = nlohmann::ordered_json;

absl::StatusOr<std::vector<TokenId>> PromptTokens(const GenerateFlags& flags, const ModelSpec& spec,
                                                  const Tokenizer* tokenizer) {
  if (!flags.tokens.empty()) return ParseTokenIds(flags.tokens, spec.vocab_size);
  if (!flags.chat.empty()) {
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<ChatEncoder> encoder,
                            ChatEncoder::Create(*tokenizer));
    ChatMessage message;
    message.role = "user";
    message.content = flags.chat;
    return encoder->Encode({message}, {});
  }
  return tokenizer->EncodePrompt(flags.prompt);
}

SamplingParams MakeSampling(const GenerateFlags& flags, const ModelSpec& spec) {
  SamplingParams sampling;
  sampling.temperature = static_cast<float>(flags.temperature);
  sampling.top_p = static_cast<float>(flags.top_p);
  sampling.top_k = flags.top_k;
  sampling.seed = flags.seed;
  sampling.max_tokens = flags.max_tokens;
  sampling.num_top_logprobs = flags.logprobs.value_or(-1);
  if (!flags.ignore_eos) {
    for (const int64_t id : spec.eos_token_ids) {
      sampling.stop_token_ids.push_back(static_cast<TokenId>(id));
    }
  }
  return sampling;
}

struct Answer {
  std::vector<SampledToken> tokens;
  std::string finish_reason;
};

absl::StatusOr<Answer> RunToEnd(Engine* engine, SequenceInput input) {
  SLUICE_RETURN_IF_ERROR(engine->AddRun(std::move(input)));
  Answer answer;
  while (engine->HasWork()) {
    StepResult step = engine->Step();
    for (TokenProduced& produced : step.tokens) answer.tokens.push_back(std::move(produced.token));
    for (const SequenceEnded& ended : step.ended) {
      if (ended.reason == EndReason::kFailed) return ended.status;
      answer.finish_reason = ended.reason == EndReason::kStop     ? "stop"
                             : ended.reason == EndReason::kLength ? "length"
                                                                  : "preempted";
    }
  }
  return answer;
}

Json LogprobsJson(const Answer& answer) {
  Json list = Json::array();
  for (const SampledToken& token : answer.tokens) {
    Json top = Json::array();
    for (const TokenLogprob& entry : token.top) {
      top.push_back(Json::array({entry.token, entry.logprob}));
    }
    list.push_back({{"token", token.token}, {"logprob", token.logprob}, {"top", top}});
  }
  return list;
}

absl::Status Generate(const GenerateFlags& flags) {
  const int num_prompts = !flags.tokens.empty() + !flags.prompt.empty() + !flags.chat.empty();
  if (num_prompts != 1) {
    return absl::InvalidArgumentError("give exactly one of --tokens, --prompt and --chat");
  }
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(flags.engine.model_dir));
  // A folder without a tokenizer still takes --tokens.
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(flags.engine.model_dir);
  if (!tokenizer.ok() && !(absl::IsNotFound(tokenizer.status()) && !flags.tokens.empty())) {
    return tokenizer.status();
  }
  SLUICE_ASSIGN_OR_RETURN(const std::vector<TokenId> prompt,
                          PromptTokens(flags, spec, tokenizer.ok() ? tokenizer->get() : nullptr));
  const int64_t longest =
      std::min<int64_t>(spec.max_position_embeddings, int64_t{flags.max_tokens} + prompt.size());

  EngineOptions options;
  options.model_dir = flags.engine.model_dir;
  options.dtype = DTypeOf(flags.engine);
  options.isa = flags.engine.isa;
  options.num_threads = flags.engine.threads;
  options.num_kv_blocks = longest / kBlockTokens + 2;
  options.scheduler.max_model_len = static_cast<int>(longest);
  // Rows of the embedding that no token has are never sampled.
  if (tokenizer.ok()) {
    options.sampleable_vocab_size = std::min<int64_t>(spec.vocab_size, (*tokenizer)->vocab_size());
  }
  options.on_load_progress = [](double fraction) { ShowProgress("loading", fraction); };
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(options));

  SequenceInput input;
  input.key = {RandomId128<RequestId>(), Attempt(1)};
  input.tokens = prompt;
  input.sampling = MakeSampling(flags, spec);
  const absl::Time begin = MonotonicNow();
  SLUICE_ASSIGN_OR_RETURN(const Answer answer, RunToEnd(engine.get(), std::move(input)));
  const double seconds = absl::ToDoubleSeconds(MonotonicNow() - begin);

  std::vector<TokenId> ids;
  for (const SampledToken& token : answer.tokens) ids.push_back(token.token);
  Json json = {{"prompt_ids", prompt}, {"ids", ids}};
  if (tokenizer.ok()) json["text"] = (*tokenizer)->Decode(ids, /*skip_special_tokens=*/true);
  json["finish_reason"] = answer.finish_reason;
  if (flags.logprobs.has_value()) json["logprobs"] = LogprobsJson(answer);
  json["seconds"] = seconds;
  std::cout << json.dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace

void AddGenerate(CLI::App* app, int* exit_code) {
  CLI::App* const command = app->add_subcommand(
      "generate", "One answer of the engine alone, as JSON (no cluster needed)");
  auto flags = std::make_shared<GenerateFlags>();
  AddEngineFlags(command, &flags->engine);
  command->add_option("--tokens", flags->tokens, "Prompt as token ids, separated by commas");
  command->add_option("--prompt", flags->prompt,
                      "Prompt as text; BOS is added if the model has it");
  command->add_option("--chat", flags->chat, "A user's message, in the model's chat format");
  command->add_option("-n,--max-tokens", flags->max_tokens, "Longest answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("-t,--temperature", flags->temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  command->add_option("--top-p", flags->top_p, "Nucleus")->check(CLI::Range(0.0, 1.0));
  command->add_option("--top-k", flags->top_k, "0: all")->check(CLI::Range(0, 1 << 20));
  command->add_option("--seed", flags->seed, "Same seed, same answer");
  command->add_flag("--ignore-eos", flags->ignore_eos, "Go on after the end of the answer");
  command->add_option("--logprobs", flags->logprobs, "Log-probabilities, with N alternatives each")
      ->check(CLI::Range(0, 20));
  command->footer(kExamples);
  command->callback([flags, exit_code] {
    InitLogging({"sluice", LogLevel::kWarning, false});
    const absl::Status status = Generate(*flags);
    *exit_code = status.ok() ? 0 : Fail(status);
  });
}

}  // namespace sluice::cli
