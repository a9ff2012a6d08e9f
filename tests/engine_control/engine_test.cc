// The engine's contract, call by call, over a fake model; see also engine_reservation_test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/engine_control/engine_fixture.h"

namespace sluice::testing {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST_F(EngineTest, RunProducesTheOraclesAnswer) {
  const SequenceInput input = Input(1, 250, 20);
  ASSERT_TRUE(fake_.engine->AddRun(input).ok());
  const std::vector<StepResult> results = StepAll();
  ExpectOracle(input);
  EXPECT_EQ(results[0].num_prefill_tokens, 100);
  EXPECT_EQ(results.back().num_decode_tokens, 1);
  EXPECT_THAT(results[2].tokens, SizeIs(1));
  EXPECT_TRUE(results[2].tokens[0].first);
  EXPECT_FALSE(results[3].tokens[0].first);
  EXPECT_EQ(results[3].tokens[0].index, 1);
  EXPECT_EQ(Blocks().active, 0);
  EXPECT_EQ(Blocks().cached, 4);  // 250 + 19 computed tokens
}

TEST_F(EngineTest, IdleEngineHasNoWorkAndSaysSo) {
  EXPECT_FALSE(fake_.engine->HasWork());
  EXPECT_TRUE(Step().idle);
}

TEST_F(EngineTest, RefusesWhatItCannotRun) {
  const auto code = [&](SequenceInput input) { return fake_.engine->AddRun(input).code(); };
  SequenceInput empty = Input(1, 0);
  EXPECT_EQ(code(empty), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Input(1, 1024)), absl::StatusCode::kInvalidArgument);
  SequenceInput foreign = Input(1, 10);
  foreign.tokens[3] = kFakeVocabSize;
  EXPECT_EQ(code(foreign), absl::StatusCode::kInvalidArgument);
  foreign.tokens[3] = -1;
  EXPECT_EQ(code(foreign), absl::StatusCode::kInvalidArgument);
  SequenceInput done = Input(1, 10, 4);
  done.num_output_tokens = 4;
  EXPECT_EQ(code(done), absl::StatusCode::kInvalidArgument);
  SequenceInput bad_sampling = Input(1, 10);
  bad_sampling.sampling.top_p = 0;
  EXPECT_EQ(code(bad_sampling), absl::StatusCode::kInvalidArgument);
  bad_sampling.sampling.top_p = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(code(bad_sampling), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(fake_.engine->HasWork());

  Start(SmallOptions(), 4);  // 256 tokens
  EXPECT_EQ(code(Input(1, 257)), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code(Input(1, 200, 58)), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(fake_.engine->Reserve(Input(1, 200, 58)).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code(Input(1, 200, 57)), absl::StatusCode::kOk);  // the last token is not computed
  StepAll();
  ExpectOracle(Input(1, 200, 57));
}

TEST_F(EngineTest, WaitingQueueIsBoundedAndKeysAreUnique) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(fake_.engine->AddRun(Input(i, 10)).ok());
  EXPECT_EQ(fake_.engine->AddPrefill(Input(4, 10)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(fake_.engine->AddRun(Input(3, 10)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(fake_.engine->Reserve(Input(3, 10)).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(fake_.engine->Load().waiting, 4);
  EXPECT_EQ(fake_.engine->Load().queued_prefill_tokens, 40);
  StepAll();
  for (int i = 0; i < 4; ++i) ExpectOracle(Input(i, 10));
}

TEST_F(EngineTest, PrefillReportsWholeBlocksThenTheRestAndStaysPinned) {
  const SequenceInput input = Input(1, 250);
  // Leave something in every block, so that a tail that is not cleared shows.
  for (int i = 0; i < 64; ++i) {
    const absl::Span<uint8_t> bytes = fake_.engine->BlockBytes(BlockId(i));
    std::fill(bytes.begin(), bytes.end(), 0xEE);
  }
  ASSERT_TRUE(fake_.engine->AddPrefill(input).ok());
  std::vector<ChunkComputed> chunks;
  std::vector<TokenProduced> tokens;
  for (const StepResult& result : StepAll()) {
    chunks.insert(chunks.end(), result.chunks.begin(), result.chunks.end());
    tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
    EXPECT_THAT(result.ended, IsEmpty());
  }
  ASSERT_THAT(chunks, SizeIs(3));  // computed: 100, 200, 250
  EXPECT_EQ(chunks[0].begin, 0);
  EXPECT_EQ(chunks[0].end, 64);
  EXPECT_THAT(chunks[0].blocks, SizeIs(1));
  EXPECT_EQ(chunks[1].begin, 64);
  EXPECT_EQ(chunks[1].end, 192);
  EXPECT_FALSE(chunks[1].last);
  EXPECT_EQ(chunks[2].begin, 192);
  EXPECT_EQ(chunks[2].end, 250);
  EXPECT_TRUE(chunks[2].last);
  ASSERT_THAT(tokens, SizeIs(1));
  EXPECT_TRUE(tokens[0].first);
  EXPECT_TRUE(tokens[0].token == OracleAnswer(input, 1024).tokens[0]);

  const absl::Span<uint8_t> last = fake_.engine->BlockBytes(chunks[2].blocks[0]);
  const size_t layer_bytes = last.size() / kFakeNumLayers;
  const size_t row_bytes = layer_bytes / kBlockTokens;
  for (size_t i = 0; i < last.size(); ++i) {
    const size_t row = i % layer_bytes / row_bytes;
    if (row >= 250 % 64) {
      ASSERT_EQ(last[i], 0) << "byte " << i;
    }
  }

  EXPECT_EQ(Blocks().sending, 4);
  EXPECT_FALSE(fake_.engine->HasWork());
  ASSERT_THAT(fake_.engine->Holders(), SizeIs(1));
  EXPECT_EQ(fake_.engine->Holders()[0].state, "sending");
  fake_.engine->Release(input.key);
  EXPECT_EQ(Blocks().sending, 0);
  EXPECT_EQ(Blocks().cached, 3);
  EXPECT_EQ(Blocks().free, 61);
  fake_.engine->Release(input.key);  // idempotent
}

TEST_F(EngineTest, CachedPrefixIsReportedInTheFirstChunkAndNotComputed) {
  SequenceInput first = Input(1, 256);
  ASSERT_TRUE(fake_.engine->AddPrefill(first).ok());
  StepAll();
  fake_.engine->Release(first.key);
  const int64_t computed = fake_.model->num_computed_tokens();

  SequenceInput again = first;
  again.key = MakeKey(2);
  ASSERT_TRUE(fake_.engine->AddPrefill(again).ok());
  const StepResult result = Step();
  // The last block is computed again, since its last token must be.
  EXPECT_EQ(fake_.model->num_computed_tokens() - computed, 64);
  ASSERT_THAT(result.chunks, SizeIs(1));
  EXPECT_EQ(result.chunks[0].begin, 0);
  EXPECT_EQ(result.chunks[0].end, 256);
  EXPECT_TRUE(result.chunks[0].last);
  EXPECT_THAT(result.chunks[0].blocks, SizeIs(4));
  ASSERT_THAT(result.tokens, SizeIs(1));
  EXPECT_EQ(result.tokens[0].cached_tokens, 192);
  EXPECT_TRUE(result.tokens[0].token == OracleAnswer(again, 1024).tokens[0]);
}

TEST_F(EngineTest, OtherSaltsShareNothing) {
  SequenceInput first = Input(1, 256);
  first.tenant_salt = "a";
  ASSERT_TRUE(fake_.engine->AddRun(first).ok());
  StepAll();
  SequenceInput other = first;
  other.key = MakeKey(2);
  other.tenant_salt = "b";
  ASSERT_TRUE(fake_.engine->AddRun(other).ok());
  std::vector<StepResult> results = StepAll();
  EXPECT_EQ(results[0].num_prefill_tokens, 100);
  ExpectOracle(other);
}

TEST_F(EngineTest, WithoutPrefixCacheNothingIsKept) {
  SchedulerOptions options = SmallOptions();
  options.enable_prefix_cache = false;
  Start(options, 64);
  ASSERT_TRUE(fake_.engine->AddRun(Input(1, 250)).ok());
  StepAll();
  EXPECT_EQ(Blocks().free, 64);
  EXPECT_THAT(fake_.engine->TakePrefixCacheChanges().added, IsEmpty());
}

TEST_F(EngineTest, PreemptedRunContinuesIdentically) {
  SchedulerOptions options = SmallOptions();
  options.expected_output_tokens = 0;
  Start(options, 5);
  // Each ends with 2 * 64 computed tokens or more: three do not fit.
  std::vector<SequenceInput> inputs;
  for (int i = 0; i < 3; ++i) {
    inputs.push_back(Input(i, 50, 100));
    inputs.back().sampling.repetition_penalty = 1.3f;
    inputs.back().sampling.frequency_penalty = 0.2f;
    ASSERT_TRUE(fake_.engine->AddRun(inputs.back()).ok());
  }
  StepAll();
  EXPECT_GT(fake_.engine->Load().num_preemptions, 0);
  for (const SequenceInput& input : inputs) ExpectOracle(input);
}

TEST_F(EngineTest, WaitsWithoutWorkWhileBlocksAreHeldFromOutside) {
  Start(SmallOptions(), 4);
  ASSERT_TRUE(fake_.engine->AddPrefill(Input(1, 200)).ok());
  StepAll();
  ASSERT_TRUE(fake_.engine->AddPrefill(Input(2, 100)).ok());
  EXPECT_TRUE(fake_.engine->HasWork());
  EXPECT_TRUE(Step().idle);
  EXPECT_FALSE(fake_.engine->HasWork());  // stepping again would spin
  fake_.engine->Release(MakeKey(1));
  EXPECT_TRUE(fake_.engine->HasWork());
  EXPECT_THAT(StepAll().back().tokens, SizeIs(1));
}

TEST_F(EngineTest, CancelInEveryState) {
  SchedulerOptions options = SmallOptions();
  options.max_num_seqs = 3;
  Start(options, 64);
  ASSERT_TRUE(fake_.engine->AddRun(Input(1, 10, 500)).ok());
  Step();  // 1 decodes
  ASSERT_TRUE(fake_.engine->AddPrefill(Input(2, 20)).ok());
  Step();  // 2 is pinned
  ASSERT_TRUE(fake_.engine->AddRun(Input(3, 300)).ok());
  ASSERT_TRUE(fake_.engine->AddPrefill(Input(4, 300)).ok());
  Step();                                                     // 3 and 4 prefill or wait
  ASSERT_TRUE(fake_.engine->AddPrefill(Input(5, 900)).ok());  // 5 waits
  const absl::StatusOr<Reservation> reservation = fake_.engine->Reserve(Input(6, 10));
  for (int i = 1; i <= 5; ++i) {
    EXPECT_TRUE(fake_.engine->Cancel(MakeKey(i))) << i;
    EXPECT_FALSE(fake_.engine->Cancel(MakeKey(i))) << i;
    EXPECT_TRUE(fake_.engine->CheckIntegrity().ok()) << i;
  }
  if (reservation.ok()) fake_.engine->AbandonReservation(MakeKey(6), 0);
  EXPECT_FALSE(fake_.engine->HasWork());
  const StepResult result = Step();
  EXPECT_TRUE(result.idle);
  EXPECT_EQ(Blocks().free + Blocks().cached, 64);
}

TEST_F(EngineTest, StopTokensAndMinTokens) {
  SequenceInput input = Input(1, 10, 200);
  input.sampling.stop_token_ids = {3, 4, 5, 6, 7, 8, 9, 10};
  input.sampling.min_tokens = 30;
  ASSERT_TRUE(fake_.engine->AddRun(input).ok());
  StepAll();
  ExpectOracle(input);
  EXPECT_EQ(answers_[input.key].reason, EndReason::kStop);
  EXPECT_GT(answers_[input.key].tokens.size(), 30u);
}

TEST_F(EngineTest, EndsAtMaxModelLen) {
  const SequenceInput input = Input(1, 1000, 500);
  ASSERT_TRUE(fake_.engine->AddRun(input).ok());
  StepAll();
  ExpectOracle(input);
  EXPECT_EQ(answers_[input.key].tokens.size(), 24u);
}

TEST_F(EngineTest, BrokenLogitsFailOneSequenceByName) {
  fake_.model->set_poison_token(60);
  SequenceInput bad = Input(1, 70);
  bad.tokens.back() = 60;
  SequenceInput good = Input(2, 70, 1);
  good.tokens.back() = 0;
  ASSERT_TRUE(fake_.engine->AddRun(bad).ok());
  ASSERT_TRUE(fake_.engine->AddRun(good).ok());
  SequenceInput bad_prefill = bad;
  bad_prefill.key = MakeKey(3);
  ASSERT_TRUE(fake_.engine->AddPrefill(bad_prefill).ok());
  std::vector<SequenceEnded> failed;
  for (const StepResult& result : StepAll()) {
    for (const SequenceEnded& ended : result.ended) {
      if (ended.reason == EndReason::kFailed) failed.push_back(ended);
    }
  }
  ASSERT_THAT(failed, SizeIs(2));
  EXPECT_THAT(std::string(failed[0].status.message()), ::testing::HasSubstr("sampling"));
  ExpectOracle(good);
  // The failed prefill sequence's blocks may still be read.
  EXPECT_EQ(Blocks().sending, 2);
  fake_.engine->Release(bad_prefill.key);
  EXPECT_EQ(Blocks().free + Blocks().cached, 64);
}

TEST_F(EngineTest, PrefixCacheChangesAreDifferences) {
  ASSERT_TRUE(fake_.engine->AddRun(Input(1, 128, 1)).ok());
  StepAll();
  const PrefixCacheChanges changes = fake_.engine->TakePrefixCacheChanges();
  const std::vector<BlockHash> chain =
      BlockHashChain(RootBlockHash(fake_.engine->fingerprint().digest, ""), Input(1, 128).tokens);
  EXPECT_THAT(changes.added, ::testing::UnorderedElementsAreArray(chain));
  EXPECT_THAT(changes.removed, IsEmpty());
  EXPECT_THAT(fake_.engine->TakePrefixCacheChanges().added, IsEmpty());
}

}  // namespace
}  // namespace sluice::testing
