// Plans of the scheduler, without a model: order, budgets, fairness, admission.
#include "engine/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/support/fake_engine.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::MakeKey;
using testing::MakeTokens;

SchedulerOptions Options() {
  SchedulerOptions options;
  options.max_num_batched_tokens = 512;
  options.max_num_seqs = 64;
  options.max_model_len = 8192;
  options.long_prompt_tokens = 1024;
  return options;
}

// Runs plans as an engine would; every sampled token is 1.
class SchedulerTest : public ::testing::Test {
 protected:
  void Start(const SchedulerOptions& options, int64_t num_blocks = 4096) {
    blocks_ = std::make_unique<BlockManager>(num_blocks, options.enable_prefix_cache);
    scheduler_ = std::make_unique<Scheduler>(options, "fingerprint", blocks_.get());
  }
  void SetUp() override { Start(Options()); }

  void Add(uint64_t request, int num_tokens, int max_tokens = 4,
           SequenceKind kind = SequenceKind::kRun, int num_output_tokens = 0) {
    SequenceInput input;
    input.num_output_tokens = num_output_tokens;
    input.key = MakeKey(request);
    input.tokens = MakeTokens(request, num_tokens, 1 << 30);
    input.sampling.max_tokens = max_tokens;
    const absl::Status status = scheduler_->Add(std::move(input), kind);
    ASSERT_TRUE(status.ok()) << status;
  }
  // Tokens computed in this step, by request.
  std::map<uint64_t, int> Step() {
    std::map<uint64_t, int> computed;
    ++step_;
    const StepPlan& plan = scheduler_->Plan();
    int num_tokens = 0;
    for (const PlannedSlice& slice : plan.slices) {
      Sequence* sequence = slice.sequence;
      EXPECT_GT(slice.num_tokens, 0);
      computed[RequestNumber(*sequence)] = slice.num_tokens;
      num_tokens += slice.num_tokens;
      scheduler_->Advance(slice);
      if (!slice.sample) continue;
      first_token_step_.try_emplace(RequestNumber(*sequence), step_);
      scheduler_->Append(sequence, 1);
      if (sequence->num_output_tokens() >= sequence->sampling.max_tokens) {
        scheduler_->Remove(sequence);
      }
    }
    EXPECT_EQ(num_tokens, plan.num_decode_tokens + plan.num_prefill_tokens);
    const absl::Status status = scheduler_->CheckIntegrity();
    EXPECT_TRUE(status.ok()) << status;
    return computed;
  }
  static uint64_t RequestNumber(const Sequence& sequence) {
    uint64_t number = 0;
    std::memcpy(&number, sequence.key.request.bytes.data(), sizeof(number));
    return number;
  }

  std::unique_ptr<BlockManager> blocks_;
  std::unique_ptr<Scheduler> scheduler_;
  int step_ = 0;
  std::map<uint64_t, int> first_token_step_;
};

TEST_F(SchedulerTest, DecodesGoFirstAndPrefillFillsTheBudget) {
  Add(1, 10, 100);
  Step();
  Add(2, 1000);
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 1), std::pair(2, 511)));
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 1), std::pair(2, 489)));
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 1), std::pair(2, 1)));
}

TEST_F(SchedulerTest, ShorterWorkGoesFirst) {
  Add(1, 900);
  Add(2, 300);
  Add(3, 100);
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 112), std::pair(2, 300), std::pair(3, 100)));
}

TEST_F(SchedulerTest, AnAnswerThatGoesOnHasAHeadStart) {
  Add(1, 400, 1);
  Add(2, 300, 1);
  Add(3, 500, 20, SequenceKind::kRun, /*num_output_tokens=*/10);
  EXPECT_THAT(Step(), ElementsAre(std::pair(2, 12), std::pair(3, 500)));
}

TEST_F(SchedulerTest, ALongAnswerThatGoesOnDoesNotHoldUpShortPrompts) {
  Add(1, 400, 1);
  Add(2, 2500, 20, SequenceKind::kRun, /*num_output_tokens=*/10);
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 400), std::pair(2, 112)));
}

TEST_F(SchedulerTest, LongPromptsTakeAtMostHalfWhileShortOnesWait) {
  SchedulerOptions options = Options();
  options.max_num_seqs = 8;
  Start(options);
  Add(1, 3000, 1);
  // By now the long one is the oldest and would go first: a prompt ages 32 tokens a step.
  for (int i = 0; i < 120; ++i) {
    Add(100 + i, 500, 1);
    const std::map<uint64_t, int> computed = Step();
    if (computed.contains(1)) {
      EXPECT_LE(computed.at(1), 256);
    }
    if (first_token_step_.contains(1)) break;
  }
  EXPECT_TRUE(first_token_step_.contains(1)) << "the long prompt starves";
}

TEST_F(SchedulerTest, WhatShortPromptsLeaveGoesToLongOnes) {
  Add(1, 3000);
  Add(2, 40);
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 472), std::pair(2, 40)));
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 511), std::pair(2, 1)));
}

TEST_F(SchedulerTest, APromptThatLosesItsPrefixWhileItWaitsCountsAsLong) {
  SchedulerOptions options = Options();
  options.max_num_batched_tokens = 400;
  options.long_prompt_tokens = 100;
  Start(options, 20);
  const auto add = [this](uint64_t request, int num_tokens) {  // they share one text
    SequenceInput input;
    input.key = MakeKey(request);
    input.tokens = MakeTokens(1, num_tokens, 1 << 30);
    input.sampling.max_tokens = 1;
    ASSERT_TRUE(scheduler_->Add(std::move(input), SequenceKind::kRun).ok());
  };
  add(1, 320);
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 320)));
  add(2, 330);  // queued with 10 tokens of work
  EXPECT_EQ(scheduler_->QueuedPrefillTokens(), 10);
  Add(3, 150);
  std::vector<BlockId> others;  // the whole pool: the prefix is evicted
  ASSERT_TRUE(blocks_->Allocate(20, BlockUse::kActive, &others));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(scheduler_->Plan().slices.empty());
  for (int i = 4; i <= 6; ++i) Add(i, 95);
  blocks_->Release(others, BlockUse::kActive);
  // Half for the first, which is long by now; the other long one waits.
  EXPECT_THAT(Step(),
              ElementsAre(std::pair(2, 200), std::pair(4, 95), std::pair(5, 95), std::pair(6, 10)));
  while (scheduler_->HasWork()) Step();
  EXPECT_THAT(scheduler_->Sequences(), IsEmpty());
}

TEST_F(SchedulerTest, LongPromptDoesNotHoldUpShortOnesAndIsNotStarved) {
  constexpr int kSteps = 400;
  Add(0, 3000, 1);
  std::map<uint64_t, int> arrival;
  uint64_t next = 1;
  // 300 tokens of short prompts a step, 59 % of what a step can compute, arriving without end.
  for (int i = 0; i < kSteps; ++i) {
    for (int j = 0; j < 3; ++j) {
      arrival[next] = step_;
      Add(next++, 100, 2);
    }
    Step();
  }
  int worst = 0;
  for (const auto& [request, step] : arrival) {
    if (step > kSteps - 20) continue;
    ASSERT_TRUE(first_token_step_.contains(request)) << request;
    worst = std::max(worst, first_token_step_[request] - step);
  }
  EXPECT_LE(worst, 3) << "steps to a short prompt's first token";
  // 3,000 tokens at 200 or more left over a step.
  ASSERT_TRUE(first_token_step_.contains(0));
  EXPECT_LE(first_token_step_[0], 20);
}

// Twice the work of 512 tokens at the beginning, wherever the prompt has got to.
TEST_F(SchedulerTest, ChunksGetSmallerAsTheContextGetsLonger) {
  SchedulerOptions options = Options();
  options.attention_parity_position = 1000;
  Start(options);
  Add(1, 8000);
  int position = 0;
  int steps = 0;
  int last_chunk = 0;
  for (; position < 8000; ++steps) {
    const int chunk = Step()[1];
    const double work = chunk * (1 + (position + (chunk - 1) / 2.0) / 1000);
    EXPECT_LE(work, 2 * 512) << position;
    position += chunk;
    if (position == 8000) break;
    if (chunk < 512) {
      EXPECT_GT(work, 2 * 512 - 10) << position;
    }
    last_chunk = chunk;
  }
  EXPECT_NEAR(last_chunk, 1024 / 9, 6);
  EXPECT_LT(steps, 60);
}

// The long one's attention leaves the short one its tokens.
TEST_F(SchedulerTest, AShortPromptBesideALongContextIsNotCutUp) {
  SchedulerOptions options = Options();
  options.attention_parity_position = 1000;
  Start(options);
  Add(1, 8000);
  for (int computed = 0; computed < 6000;) computed += Step()[1];
  Add(2, 300);
  const std::map<uint64_t, int> step = Step();
  EXPECT_EQ(step.at(2), 300);
  EXPECT_GT(step.at(1), 50);
  EXPECT_LT(step.at(1), 150);
}

// However little 32 tokens at the beginning cost.
TEST_F(SchedulerTest, AVeryLongContextGoesOn) {
  SchedulerOptions options = Options();
  options.max_num_batched_tokens = options.max_num_seqs = 32;
  options.attention_parity_position = 10;
  Start(options);
  Add(1, 8000);
  Add(2, 8000);
  for (int computed = 0; computed < 16000;) {
    int in_step = 0;
    for (const auto& [_, tokens] : Step()) in_step += tokens;
    ASSERT_GE(in_step, 4);
    computed += in_step;
  }
}

TEST_F(SchedulerTest, LongPromptIsServedUnderAFloodOfShortOnes) {
  // More short work than the engine can do: without ageing the long prompt would never run.
  SchedulerOptions options = Options();
  options.max_num_waiting = 1 << 20;
  Start(options, 1 << 16);
  Add(0, 3000, 1);
  uint64_t next = 1;
  for (int i = 0; i < 200 && !first_token_step_.contains(0); ++i) {
    for (int j = 0; j < 8; ++j) Add(next++, 100, 1);
    Step();
  }
  ASSERT_TRUE(first_token_step_.contains(0));
  // Overtaken by what arrives in 3000 / 32 steps, 800 tokens in each; then it has half of each
  // step.
  EXPECT_LE(first_token_step_[0], 3000 / 32 * 800 / 512 + 3000 / 256 + 5);
  EXPECT_GT(scheduler_->num_waiting(), 100);  // it did overtake
}

TEST_F(SchedulerTest, FirstInOrderIsNotOvertakenForBlocks) {
  SchedulerOptions options = Options();
  options.expected_output_tokens = 0;
  Start(options, 10);
  Add(1, 64 * 6, 60);
  Step();
  Add(2, 64 * 5, 1);  // does not fit beside 1
  for (int i = 0; i < 40; ++i) Step();
  Add(3, 64, 1);  // would fit; but 2 has waited long enough to be first
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 1)));
  EXPECT_EQ(scheduler_->num_waiting(), 2);
  while (scheduler_->HasWork()) Step();
  EXPECT_LE(first_token_step_[2], first_token_step_[3]);
}

TEST_F(SchedulerTest, MaxNumSeqsHolds) {
  SchedulerOptions options = Options();
  options.max_num_seqs = 2;
  Start(options);
  for (int i = 0; i < 5; ++i) Add(i, 10, 3);
  while (scheduler_->HasWork()) {
    const size_t size = Step().size();
    EXPECT_LE(size, 2u);
    EXPECT_GE(size, 1u);
  }
  EXPECT_EQ(first_token_step_.size(), 5u);
}

TEST_F(SchedulerTest, YoungestIsPreemptedAndOldestNever) {
  SchedulerOptions options = Options();
  options.expected_output_tokens = 0;
  Start(options, 6);
  for (int i = 0; i < 3; ++i) Add(i, 60, 128 - 60 + 2);
  Step();
  Sequence* oldest = scheduler_->Find(MakeKey(0));
  while (scheduler_->Find(MakeKey(0)) != nullptr) {
    EXPECT_EQ(scheduler_->Find(MakeKey(0)), oldest);
    EXPECT_NE(oldest->phase, SequencePhase::kWaiting);
    Step();
  }
  EXPECT_GT(scheduler_->num_preemptions(), 0);
  EXPECT_EQ(first_token_step_[2], 1);
  while (scheduler_->HasWork()) Step();
  EXPECT_THAT(scheduler_->Sequences(), IsEmpty());
}

TEST_F(SchedulerTest, SharedPrefixIsSharedInBlocks) {
  SchedulerOptions options = Options();
  Start(options);
  SequenceInput input;
  input.tokens = MakeTokens(1, 640, 1000);
  input.sampling.max_tokens = 50;
  input.key = MakeKey(1);
  ASSERT_TRUE(scheduler_->Add(input, SequenceKind::kRun).ok());
  Step();
  Step();
  input.key = MakeKey(2);
  ASSERT_TRUE(scheduler_->Add(input, SequenceKind::kRun).ok());
  EXPECT_THAT(Step(), ElementsAre(std::pair(1, 1), std::pair(2, 64)));
  const Sequence* a = scheduler_->Find(MakeKey(1));
  const Sequence* b = scheduler_->Find(MakeKey(2));
  for (int i = 0; i < 9; ++i) EXPECT_EQ(a->block_table[i], b->block_table[i]);
  EXPECT_NE(a->block_table[9], b->block_table[9]);
  EXPECT_EQ(b->num_cached_tokens, 576);
}

TEST(SchedulerOptionsTest, RefusesByName) {
  const auto message = [](auto&& change) {
    SchedulerOptions options = Options();
    change(options);
    return std::string(options.Validate().message());
  };
  EXPECT_THAT(message([](SchedulerOptions& o) { o.max_num_seqs = 0; }), HasSubstr("max_num_seqs"));
  EXPECT_THAT(message([](SchedulerOptions& o) { o.max_num_batched_tokens = 63; }),
              HasSubstr("max_num_batched_tokens"));
  EXPECT_THAT(message([](SchedulerOptions& o) { o.max_num_waiting = 0; }),
              HasSubstr("max_num_waiting"));
  EXPECT_THAT(message([](SchedulerOptions& o) { o.long_prompt_tokens = 0; }),
              HasSubstr("long_prompt_tokens"));
  EXPECT_TRUE(Options().Validate().ok());
}

}  // namespace
}  // namespace sluice
