// What memory_fit.h says of a step against what a large step really takes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "engine/runtime/memory_fit.h"
#include "tests/engine_compute/model_harness.h"

namespace sluice {
namespace {

constexpr int kTokens = 1200;

int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

void ExpectEnough(const std::string& dir) {
  LoadedModel loaded = LoadModelForTest(dir, DType::kBF16, "auto", 2, kTokens / kBlockTokens + 1);
  ASSERT_NE(loaded.model, nullptr);
  std::vector<float> logits(static_cast<size_t>(loaded.spec.vocab_size));
  const auto step = [&](TestSequence* sequence, int count) {
    const SequenceSlice slices[] = {sequence->Slice(count, 1)};
    loaded.model->Forward(slices, absl::MakeSpan(logits));
    sequence->computed += count;
  };
  // All of the cache is taken from the system by small steps.
  const std::vector<TokenId> tokens(kTokens, 7);
  TestSequence in_pieces = MakeSequence(tokens, kTokens);
  while (in_pieces.computed < kTokens) step(&in_pieces, 50);
  const int64_t before = ResidentBytes();
  TestSequence at_once = MakeSequence(tokens, kTokens);
  step(&at_once, kTokens);
  const int64_t taken = ResidentBytes() - before;

  SchedulerOptions scheduler;
  scheduler.max_num_seqs = 0;
  scheduler.max_num_batched_tokens = kTokens;
  scheduler.max_model_len = kTokens;
  const int64_t told = StepBytes(loaded.spec, DType::kBF16, scheduler, 2);
  EXPECT_GE(told, taken);
  EXPECT_LE(told, 2 * taken);
}

TEST(StepMemory, IsEnoughAndNotMuchMore) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's memory counts as well";
#endif
  ExpectEnough(TinyModelDir());
  ExpectEnough(GoldenDir("dev-v3"));
}

}  // namespace
}  // namespace sluice
