// An engine over a fake model, stepped by the test, with what it answered beside the oracle's
// answers.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "absl/container/flat_hash_map.h"
#include "tests/support/fake_engine.h"

namespace sluice::testing {

inline SchedulerOptions SmallOptions() {
  SchedulerOptions options;
  options.max_num_batched_tokens = 100;
  options.max_num_seqs = 8;
  options.max_num_waiting = 4;
  options.max_model_len = 1024;
  return options;
}

inline SequenceInput Input(uint64_t request, int num_tokens, int max_tokens = 8) {
  SequenceInput input;
  input.key = MakeKey(request);
  input.tokens = MakeTokens(request, num_tokens);
  input.sampling.seed = request;
  input.sampling.max_tokens = max_tokens;
  input.sampling.num_top_logprobs = 2;
  return input;
}

class EngineTest : public ::testing::Test {
 protected:
  void Start(const SchedulerOptions& options, int64_t num_blocks) {
    fake_ = MakeFakeEngine(options, num_blocks);
    options_ = options;
  }
  void SetUp() override { Start(SmallOptions(), 64); }

  StepResult Step() {
    StepResult result = fake_.engine->Step();
    const absl::Status status = fake_.engine->CheckIntegrity();
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(fake_.engine->Load().blocks.Balanced());
    for (const TokenProduced& token : result.tokens) {
      Answer& answer = answers_[token.key];
      answer.tokens.push_back(token.token);
    }
    for (const SequenceEnded& ended : result.ended) answers_[ended.key].reason = ended.reason;
    return result;
  }
  // All results of stepping until nothing can be done.
  std::vector<StepResult> StepAll() {
    std::vector<StepResult> results;
    while (fake_.engine->HasWork()) {
      results.push_back(Step());
      if (results.size() > 10000) ADD_FAILURE() << "the engine never finishes";
      if (results.size() > 10000) break;
    }
    return results;
  }
  void ExpectOracle(const SequenceInput& input) {
    const Answer expected = OracleAnswer(input, options_.max_model_len);
    const Answer& actual = answers_[input.key];
    EXPECT_TRUE(actual == expected) << ToString(actual) << "\n" << ToString(expected);
  }
  // Computes a prompt's KV from outside, as a transfer would.
  void FillReservation(const SequenceInput& input, const Reservation& reservation) {
    for (size_t i = static_cast<size_t>(reservation.cached_tokens); i < input.tokens.size(); ++i) {
      const int in_reservation = static_cast<int>(i) - reservation.cached_tokens;
      const BlockId block = reservation.blocks[static_cast<size_t>(in_reservation / kBlockTokens)];
      std::vector<BlockId> table(i / kBlockTokens + 1, block);
      WriteFakeKv(*fake_.kv_store, table, static_cast<int>(i), input.tokens[i]);
    }
  }
  BlockCounts Blocks() { return fake_.engine->Load().blocks; }

  SchedulerOptions options_;
  FakeEngine fake_;
  absl::flat_hash_map<SequenceKey, Answer> answers_;
};

}  // namespace sluice::testing
