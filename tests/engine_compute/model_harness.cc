#include "tests/engine_compute/model_harness.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace sluice {

std::string GoldenDir(const std::string& name) {
  return absl::StrCat(SLUICE_SOURCE_DIR, "/tests/golden/data/", name);
}

std::string TinyModelDir() { return absl::StrCat(SLUICE_SOURCE_DIR, "/models/deepseek-tiny"); }

LoadedModel LoadModelForTest(const std::string& dir, DType dtype, const std::string& isa,
                             int num_threads, int64_t num_blocks) {
  LoadedModel out;
  auto spec = LoadModelSpec(dir);
  EXPECT_TRUE(spec.ok()) << spec.status();
  if (!spec.ok()) return out;
  out.spec = *spec;
  auto weights = LoadDeepseekWeights(
      *spec, {.model_dir = dir, .dtype = dtype, .isa = isa, .num_threads = num_threads});
  EXPECT_TRUE(weights.ok()) << weights.status();
  if (!weights.ok()) return out;
  out.kernel_family = (*weights)->backend->kernel_family();
  auto kv = KvStore::Create(MakeKvLayout(*spec, dtype), num_blocks);
  EXPECT_TRUE(kv.ok()) << kv.status();
  if (!kv.ok()) return out;
  out.kv = *std::move(kv);
  out.model = CreateDeepseekModel(*std::move(weights), out.kv.get());
  return out;
}

SequenceSlice TestSequence::Slice(int count, int logit_rows) const {
  return {.tokens = absl::MakeSpan(tokens).subspan(static_cast<size_t>(computed),
                                                   static_cast<size_t>(count)),
          .start_position = computed,
          .block_table = blocks,
          .num_logit_rows = logit_rows};
}

TestSequence MakeSequence(std::vector<TokenId> tokens, int max_tokens, int first_block) {
  TestSequence sequence;
  sequence.tokens = std::move(tokens);
  for (int i = 0; i * 64 < max_tokens; ++i) sequence.blocks.push_back(BlockId(first_block + i));
  return sequence;
}

std::vector<std::vector<float>> RunAllLogits(LoadedModel& loaded, TestSequence& sequence) {
  const size_t vocab = static_cast<size_t>(loaded.spec.vocab_size);
  const int count = static_cast<int>(sequence.tokens.size()) - sequence.computed;
  std::vector<float> logits(static_cast<size_t>(count) * vocab);
  const SequenceSlice slice = sequence.Slice(count, count);
  loaded.model->Forward({&slice, 1}, absl::MakeSpan(logits));
  sequence.computed += count;
  std::vector<std::vector<float>> rows;
  for (int i = 0; i < count; ++i) {
    const auto begin = logits.begin() + static_cast<int64_t>(static_cast<size_t>(i) * vocab);
    rows.emplace_back(begin, begin + static_cast<int64_t>(vocab));
  }
  return rows;
}

std::vector<GreedyStep> Greedy(LoadedModel& loaded, TestSequence& sequence, int count) {
  std::vector<GreedyStep> steps;
  std::vector<float> logits(static_cast<size_t>(loaded.spec.vocab_size));
  while (static_cast<int>(steps.size()) < count) {
    const int pending = static_cast<int>(sequence.tokens.size()) - sequence.computed;
    const SequenceSlice slice = sequence.Slice(pending, 1);
    loaded.model->Forward({&slice, 1}, absl::MakeSpan(logits));
    sequence.computed += pending;
    const auto best = std::max_element(logits.begin(), logits.end());
    const TokenId token = static_cast<TokenId>(best - logits.begin());
    const float top = *best;
    *best = -1e30f;
    steps.push_back({token, top - *std::max_element(logits.begin(), logits.end())});
    sequence.tokens.push_back(token);
  }
  return steps;
}

}  // namespace sluice
