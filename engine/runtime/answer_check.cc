#include "engine/runtime/answer_check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace sluice {
namespace {

constexpr int kNumOutputTokens = 16;
constexpr int kSelfCheckPromptTokens = 24;
// Kernels of other processors add in another order; f32 sums differ in the last digits.
constexpr double kLeastToleranceF32 = 1e-3;
constexpr double kLeastToleranceBf16 = 0.05;

SequenceKey KeyOf(uint8_t number) {
  SequenceKey key;
  key.request.bytes.fill(number);
  key.attempt = Attempt(1);
  return key;
}

SequenceInput Ask(uint8_t number, absl::Span<const TokenId> prompt, int num_tokens) {
  SequenceInput input;
  input.key = KeyOf(number);
  input.tokens.assign(prompt.begin(), prompt.end());
  input.sampling.temperature = 0;
  input.sampling.max_tokens = num_tokens;
  input.sampling.num_top_logprobs = 2;
  return input;
}

using Answer = std::vector<SampledToken>;

// Answers to questions in their order, each asked one step after the one before it.
absl::StatusOr<std::vector<Answer>> RunAll(Engine* engine, std::vector<SequenceInput> inputs) {
  std::vector<Answer> answers(inputs.size());
  size_t num_asked = 0;
  while (num_asked < inputs.size() || engine->HasWork()) {
    if (num_asked < inputs.size()) SLUICE_RETURN_IF_ERROR(engine->AddRun(inputs[num_asked++]));
    StepResult step = engine->Step();
    for (const SequenceEnded& ended : step.ended) {
      if (ended.reason == EndReason::kFailed) {
        return absl::DataLossError(absl::StrCat("no token came out: ", ended.status.message()));
      }
    }
    for (TokenProduced& produced : step.tokens) {
      const auto asked =
          std::find_if(inputs.begin(), inputs.end(),
                       [&](const SequenceInput& input) { return input.key == produced.key; });
      if (!std::isfinite(produced.token.logprob)) {
        return absl::DataLossError(
            absl::StrCat("token ", produced.index, ": the log-probability is not a finite number"));
      }
      answers[static_cast<size_t>(asked - inputs.begin())].push_back(std::move(produced.token));
    }
  }
  return answers;
}

absl::StatusOr<Answer> RunOne(Engine* engine, absl::Span<const TokenId> prompt, int num_tokens) {
  SLUICE_ASSIGN_OR_RETURN(std::vector<Answer> answers,
                          RunAll(engine, {Ask(1, prompt, num_tokens)}));
  return std::move(answers.front());
}

// An engine may be configured for sequences that are shorter than the question; 0: too short for
// any.
int OutputsThatFit(const Engine& engine, size_t num_prompt_tokens, size_t num_wanted) {
  const int64_t room = engine.max_model_len() - static_cast<int64_t>(num_prompt_tokens);
  return static_cast<int>(std::clamp<int64_t>(room, 0, static_cast<int64_t>(num_wanted)));
}

bool SameBits(const SampledToken& a, const SampledToken& b) {
  return a.token == b.token &&
         std::bit_cast<uint32_t>(a.logprob) == std::bit_cast<uint32_t>(b.logprob);
}

}  // namespace

std::vector<TokenId> SyntheticGoldenPrompt(int64_t vocab_size, int count) {
  std::vector<TokenId> prompt;
  for (int64_t i = 0; i < count; ++i) {
    prompt.push_back(static_cast<TokenId>((17 + 7919 * i) % vocab_size));
  }
  return prompt;
}

absl::StatusOr<GoldenAnswer> MakeGoldenAnswer(Engine* engine, absl::Span<const TokenId> prompt) {
  SLUICE_ASSIGN_OR_RETURN(const Answer answer, RunOne(engine, prompt, kNumOutputTokens));
  GoldenAnswer golden;
  golden.dtype = engine->layout().dtype;
  golden.prompt.assign(prompt.begin(), prompt.end());
  golden.tolerance_f32 = kLeastToleranceF32;
  golden.tolerance_bf16 = kLeastToleranceBf16;
  for (const SampledToken& token : answer) {
    golden.output.push_back(token.token);
    golden.logprobs.push_back(token.logprob);
    golden.margins.push_back(double{token.top.at(0).logprob} - double{token.top.at(1).logprob});
  }
  return golden;
}

absl::Status CheckGoldenAnswer(Engine* engine, const GoldenAnswer& golden) {
  const int num_tokens = OutputsThatFit(*engine, golden.prompt.size(), golden.output.size());
  if (num_tokens == 0) return CheckSelfConsistency(engine);
  SLUICE_ASSIGN_OR_RETURN(const Answer answer, RunOne(engine, golden.prompt, num_tokens));
  const double tolerance = golden.Tolerance(engine->layout().dtype);
  for (size_t i = 0; i < answer.size(); ++i) {
    if (answer[i].token != golden.output[i]) {
      if (golden.margins[i] < 2 * tolerance) return absl::OkStatus();
      return absl::DataLossError(absl::StrCat("token ", i, " of the golden prompt's answer is ",
                                              answer[i].token, " instead of ", golden.output[i],
                                              ", which should lead by ", golden.margins[i]));
    }
    const double deviation = std::abs(double{answer[i].logprob} - golden.logprobs[i]);
    if (!(deviation <= tolerance)) {
      return absl::DataLossError(
          absl::StrCat("token ", i, " of the golden prompt's answer has log-probability ",
                       answer[i].logprob, " instead of ", golden.logprobs[i],
                       " (allowed: ", tolerance, " at ", DTypeName(engine->layout().dtype), ")"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<double> LargestDeviation(Engine* engine, const GoldenAnswer& golden) {
  SLUICE_ASSIGN_OR_RETURN(const Answer answer,
                          RunOne(engine, golden.prompt, static_cast<int>(golden.output.size())));
  double largest = 0;
  for (size_t i = 0; i < answer.size(); ++i) {
    // Another token leads: one of the two has moved by half of what lay between them, or more.
    // What follows has another beginning.
    if (answer[i].token != golden.output[i]) return std::max(largest, golden.margins[i] / 2);
    largest = std::max(largest, std::abs(double{answer[i].logprob} - golden.logprobs[i]));
  }
  return largest;
}

absl::Status CheckSelfConsistency(Engine* engine) {
  const int num_prompt_tokens = std::min(kSelfCheckPromptTokens, engine->max_model_len() / 2);
  if (num_prompt_tokens == 0) return absl::OkStatus();
  const std::vector<TokenId> prompt =
      SyntheticGoldenPrompt(engine->spec().vocab_size, num_prompt_tokens);
  const int num_tokens = OutputsThatFit(*engine, prompt.size(), kNumOutputTokens);
  SLUICE_ASSIGN_OR_RETURN(const Answer alone, RunOne(engine, prompt, num_tokens));

  // The prompt and all but the last token of its answer, as one prompt.
  std::vector<TokenId> prefix = prompt;
  for (size_t i = 0; i + 1 < alone.size(); ++i) prefix.push_back(alone[i].token);
  SLUICE_ASSIGN_OR_RETURN(const std::vector<Answer> together,
                          RunAll(engine, {Ask(1, prompt, num_tokens), Ask(2, prefix, 1)}));
  for (size_t i = 0; i < alone.size(); ++i) {
    if (!SameBits(alone[i], together[0].at(i))) {
      return absl::DataLossError(
          absl::StrCat("token ", i, " differs when the same prompt runs again beside another"));
    }
  }
  if (!SameBits(alone.back(), together[1].at(0))) {
    return absl::DataLossError(absl::StrCat("token ", alone.size() - 1,
                                            " differs when its prefix is computed as one prompt"));
  }
  return absl::OkStatus();
}

}  // namespace sluice
