#include "engine/runtime/memory_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace sluice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kGB = 1'000'000'000;

TEST(MemoryFit, SaysHowMuchIsWantedAndThere) {
  EXPECT_TRUE(CheckWeightsFit(10 * kGB, 10 * kGB).ok());
  const absl::Status refused = CheckWeightsFit(1342 * kGB, 20 * kGB);
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("1342.0 GB"), HasSubstr("20.0 GB")));
}

TEST(MemoryFit, TheWidthOfTheNumbersCounts) {
  ModelSpec spec;
  spec.vocab_size = 1000;
  spec.hidden_size = 100;
  spec.num_hidden_layers = 0;
  // The embedding, the vocabulary's projection and the last norm.
  EXPECT_EQ(WeightBytes(spec, DType::kBF16), 2 * (2 * 1000 * 100 + 100));
  EXPECT_EQ(WeightBytes(spec, DType::kF32), 4 * (2 * 1000 * 100 + 100));
}

TEST(MemoryFit, AStepTakesItsTokensWorthAndTheLogits) {
  ModelSpec spec;
  spec.vocab_size = 129280;
  spec.hidden_size = 7168;
  spec.num_attention_heads = 128;
  spec.q_lora_rank = 1536;
  spec.kv_lora_rank = 512;
  spec.qk_nope_head_dim = spec.v_head_dim = 128;
  spec.qk_rope_head_dim = 64;
  spec.num_experts_per_tok = 8;
  spec.n_routed_experts = 256;
  spec.n_shared_experts = 1;
  spec.moe_intermediate_size = 2048;
  spec.intermediate_size = 18432;
  spec.max_position_embeddings = 163840;
  SchedulerOptions scheduler;
  scheduler.max_model_len = 256;
  const auto bytes = [&] { return StepBytes(spec, DType::kBF16, scheduler, 1); };
  const int64_t small = bytes();
  scheduler.max_num_batched_tokens += 1000;
  const double mb_per_token = static_cast<double>(bytes() - small) / 1e9;
  EXPECT_GT(mb_per_token, 0.6);
  EXPECT_LT(mb_per_token, 1.0);
  scheduler.max_num_seqs += 100;
  EXPECT_EQ(bytes() - small - static_cast<int64_t>(mb_per_token * 1e9), 100 * 129280 * 4);
}

}  // namespace
}  // namespace sluice
