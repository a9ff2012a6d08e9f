// The engine's contract, call by call, over a fake model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/container/flat_hash_map.h"
#include "tests/support/fake_engine.h"

namespace sluice::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

SchedulerOptions SmallOptions() {
  SchedulerOptions options;
  options.max_num_batched_tokens = 100;
  options.max_num_seqs = 8;
  options.max_num_waiting = 4;
  options.max_model_len = 1024;
  return options;
}

SequenceInput Input(uint64_t request, int num_tokens, int max_tokens = 8) {
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

TEST_F(EngineTest, ReservationBecomesADecodingSequence) {
  const SequenceInput input = Input(1, 150, 12);
  const absl::StatusOr<Reservation> reservation = fake_.engine->Reserve(input);
  ASSERT_TRUE(reservation.ok());
  EXPECT_EQ(reservation->cached_tokens, 0);
  EXPECT_THAT(reservation->blocks, SizeIs(3));
  EXPECT_EQ(Blocks().receiving, 3);
  EXPECT_FALSE(fake_.engine->HasWork());
  EXPECT_FALSE(fake_.engine->Cancel(input.key));
  FillReservation(input, *reservation);

  const Answer expected = OracleAnswer(input, 1024);
  ASSERT_TRUE(fake_.engine->Activate(input.key, expected.tokens[0]).ok());
  answers_[input.key].tokens.push_back(expected.tokens[0]);
  EXPECT_EQ(Blocks().receiving, 0);
  EXPECT_EQ(fake_.engine->Activate(input.key, expected.tokens[0]).code(),
            absl::StatusCode::kFailedPrecondition);
  const std::vector<StepResult> results = StepAll();
  EXPECT_FALSE(results[0].tokens[0].first);
  EXPECT_EQ(results[0].tokens[0].index, 1);
  ExpectOracle(input);

  // Its prompt is cached now; the block of the last token is received all the same.
  SequenceInput again = Input(1, 128);
  again.key = MakeKey(2);
  const absl::StatusOr<Reservation> second = fake_.engine->Reserve(again);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->cached_tokens, 64);
  EXPECT_THAT(second->blocks, SizeIs(1));
  FillReservation(again, *second);
  ASSERT_TRUE(fake_.engine->Activate(again.key, OracleAnswer(again, 1024).tokens[0]).ok());
  answers_[again.key].tokens.push_back(OracleAnswer(again, 1024).tokens[0]);
  StepAll();
  ExpectOracle(again);
}

TEST_F(EngineTest, ActivationMayEndAtOnce) {
  SequenceInput input = Input(1, 70, 1);
  ASSERT_TRUE(fake_.engine->Reserve(input).ok());
  ASSERT_TRUE(fake_.engine->Activate(input.key, {5, 0, {}}).ok());
  EXPECT_TRUE(fake_.engine->HasWork());
  StepResult result = Step();
  ASSERT_THAT(result.ended, SizeIs(1));
  EXPECT_EQ(result.ended[0].reason, EndReason::kLength);
  EXPECT_FALSE(result.idle);
  EXPECT_THAT(result.tokens, IsEmpty());

  input = Input(2, 70, 5);
  input.sampling.stop_token_ids = {7};
  ASSERT_TRUE(fake_.engine->Reserve(input).ok());
  ASSERT_TRUE(fake_.engine->Activate(input.key, {7, 0, {}}).ok());
  EXPECT_EQ(fake_.engine->AddRun(input).code(), absl::StatusCode::kAlreadyExists);
  result = Step();
  ASSERT_THAT(result.ended, SizeIs(1));
  EXPECT_EQ(result.ended[0].reason, EndReason::kStop);

  // A cancelled one is not reported.
  input = Input(3, 70, 1);
  ASSERT_TRUE(fake_.engine->Reserve(input).ok());
  ASSERT_TRUE(fake_.engine->Activate(input.key, {5, 0, {}}).ok());
  EXPECT_TRUE(fake_.engine->Cancel(input.key));
  EXPECT_THAT(Step().ended, IsEmpty());
}

TEST_F(EngineTest, AbandonKeepsVerifiedBlocksAsPrefix) {
  const SequenceInput input = Input(1, 250);
  const absl::StatusOr<Reservation> reservation = fake_.engine->Reserve(input);
  ASSERT_TRUE(reservation.ok());
  FillReservation(input, *reservation);
  fake_.engine->QuarantineReservation(input.key, 0);
  EXPECT_EQ(Blocks().quarantined, 4);
  EXPECT_EQ(Blocks().receiving, 0);
  EXPECT_FALSE(fake_.engine->Activate(input.key, {0, 0, {}}).ok());
  EXPECT_TRUE(fake_.engine->CheckIntegrity().ok());
  fake_.engine->AbandonReservation(input.key, 130);
  EXPECT_EQ(Blocks().cached, 2);
  EXPECT_EQ(Blocks().free, 62);

  SequenceInput retry = input;
  retry.key = MakeKey(1, 2);
  const absl::StatusOr<Reservation> second = fake_.engine->Reserve(retry);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->cached_tokens, 128);
  EXPECT_THAT(second->blocks, SizeIs(2));
  // Nothing verified this time: what was cached before stays.
  fake_.engine->AbandonReservation(retry.key, 0);
  EXPECT_EQ(Blocks().cached, 2);
  EXPECT_TRUE(fake_.engine->CheckIntegrity().ok());
}

TEST_F(EngineTest, WhollyCachedPromptStillReservesItsLastBlock) {
  const SequenceInput input = Input(1, 192);  // exactly three blocks
  const absl::StatusOr<Reservation> first = fake_.engine->Reserve(input);
  ASSERT_TRUE(first.ok());
  FillReservation(input, *first);
  fake_.engine->AbandonReservation(input.key, 192);
  EXPECT_EQ(Blocks().cached, 3);

  SequenceInput again = input;
  again.key = MakeKey(1, 2);
  const absl::StatusOr<Reservation> second = fake_.engine->Reserve(again);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->cached_tokens, 128);
  EXPECT_THAT(second->blocks, SizeIs(1));  // a transfer of nothing could not bring the next token
  FillReservation(again, *second);
  EXPECT_TRUE(fake_.engine->Activate(again.key, {5, 0, {}}).ok());
  EXPECT_TRUE(fake_.engine->CheckIntegrity().ok());
}

TEST_F(EngineTest, ReservationsAndAnswersPromiseGrowth) {
  Start(SmallOptions(), 8);  // 512 tokens
  // 3 blocks now, 2 more expected: 150 + 149 computed tokens.
  ASSERT_TRUE(fake_.engine->Reserve(Input(1, 150, 150)).ok());
  EXPECT_EQ(fake_.engine->Reserve(Input(2, 200, 10)).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(fake_.engine->Reserve(Input(3, 150, 10)).ok());
  fake_.engine->AbandonReservation(MakeKey(3), 0);
  fake_.engine->AbandonReservation(MakeKey(1), 0);
  EXPECT_TRUE(fake_.engine->Reserve(Input(2, 200, 10)).ok());
  EXPECT_TRUE(fake_.engine->CheckIntegrity().ok());
}

TEST_F(EngineTest, ReservationsCountAgainstMaxNumSeqs) {
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(fake_.engine->Reserve(Input(i, 10)).ok());
  EXPECT_EQ(fake_.engine->Reserve(Input(8, 10)).status().code(),
            absl::StatusCode::kResourceExhausted);
}

// A prefill worker reserves for a prefix that it fetches, while prompts wait.
TEST_F(EngineTest, ReservationsLeaveTheFirstInTheQueueItsBlocks) {
  Start(SmallOptions(), 8);
  ASSERT_TRUE(fake_.engine->AddPrefill(Input(1, 300)).ok());
  StepAll();
  ASSERT_EQ(Blocks().sending, 5);
  ASSERT_TRUE(fake_.engine->AddPrefill(Input(2, 400)).ok());  // 7 blocks
  EXPECT_EQ(fake_.engine->Reserve(Input(3, 100)).status().code(),
            absl::StatusCode::kResourceExhausted);
  Step();
  EXPECT_EQ(fake_.engine->Reserve(Input(3, 100)).status().code(),
            absl::StatusCode::kResourceExhausted);
  fake_.engine->Release(MakeKey(1));
  EXPECT_EQ(fake_.engine->Reserve(Input(3, 100)).status().code(),  // 8 blocks, 2 of them wanted
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(fake_.engine->Reserve(Input(4, 60, 1)).ok());  // beside the 7
  StepAll();
  EXPECT_EQ(Blocks().sending, 7);
}

TEST_F(EngineTest, ReservationsLeaveTheFirstInTheQueueItsPlace) {
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(fake_.engine->Reserve(Input(i, 10)).ok());
  ASSERT_TRUE(fake_.engine->AddPrefill(Input(7, 10)).ok());
  EXPECT_EQ(fake_.engine->Reserve(Input(8, 10)).status().code(),
            absl::StatusCode::kResourceExhausted);
  StepAll();  // computed, and now only its blocks are here
  EXPECT_TRUE(fake_.engine->Reserve(Input(8, 10)).ok());
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

TEST_F(EngineTest, PreemptedReservationIsHandedBack) {
  SchedulerOptions options = SmallOptions();
  options.expected_output_tokens = 0;
  Start(options, 6);
  std::vector<SequenceInput> inputs;
  for (int i = 0; i < 3; ++i) {
    inputs.push_back(Input(i, 50, 100));
    const absl::StatusOr<Reservation> reservation = fake_.engine->Reserve(inputs.back());
    ASSERT_TRUE(reservation.ok());
    FillReservation(inputs.back(), *reservation);
    const SampledToken first = OracleAnswer(inputs.back(), 1024).tokens[0];
    ASSERT_TRUE(fake_.engine->Activate(inputs.back().key, first).ok());
    answers_[inputs.back().key].tokens.push_back(first);
  }
  StepAll();
  ExpectOracle(inputs[0]);
  ExpectOracle(inputs[1]);
  EXPECT_EQ(answers_[inputs[2].key].reason, EndReason::kPreempted);
  EXPECT_EQ(fake_.engine->Load().num_preemptions, 1);

  // Planned anew with what the client has, it goes on where it was.
  SequenceInput rest = inputs[2];
  rest.key.attempt = Attempt(2);
  for (const SampledToken& token : answers_[inputs[2].key].tokens) {
    rest.tokens.push_back(token.token);
    ++rest.num_output_tokens;
  }
  ASSERT_GT(rest.num_output_tokens, 1);
  ASSERT_TRUE(fake_.engine->AddRun(rest).ok());
  StepAll();
  Answer whole = answers_[inputs[2].key];
  const Answer& tail = answers_[rest.key];
  whole.tokens.insert(whole.tokens.end(), tail.tokens.begin(), tail.tokens.end());
  whole.reason = tail.reason;
  EXPECT_TRUE(whole == OracleAnswer(inputs[2], 1024));
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

TEST_F(EngineTest, WhatADyingTransferHadVerifiedIsCachedAtOnce) {
  const SequenceInput input = Input(1, 250);
  const Reservation reservation = *fake_.engine->Reserve(input);
  FillReservation(input, reservation);
  fake_.engine->QuarantineReservation(input.key, 0);
  EXPECT_EQ(fake_.engine->CachedTokens(input), 0);
  fake_.engine->QuarantineReservation(input.key, 130);  // the third block may still be written to
  EXPECT_EQ(fake_.engine->CachedTokens(input), 128);
  EXPECT_EQ(Blocks().quarantined, 2);
  ASSERT_TRUE(fake_.engine->CheckIntegrity().ok());
  SequenceInput retry = input;
  retry.key = MakeKey(1, 2);
  EXPECT_EQ(fake_.engine->Reserve(retry)->cached_tokens, 128);
  fake_.engine->AbandonReservation(input.key, 130);
  EXPECT_EQ(Blocks().quarantined, 0);
  fake_.engine->AbandonReservation(retry.key, 0);
  EXPECT_EQ(Blocks().cached, 2);
  EXPECT_EQ(Blocks().free, 62);
}

// What a prefill worker does with a prefix that it fetches.
TEST_F(EngineTest, FetchedPrefixIsFoundByThePromptThatFollows) {
  const SequenceInput prompt = Input(1, 300);
  EXPECT_EQ(fake_.engine->CachedTokens(prompt), 0);
  SequenceInput prefix = prompt;
  prefix.tokens.resize(256);
  const Reservation reservation = *fake_.engine->Reserve(prefix);
  ASSERT_THAT(reservation.blocks, SizeIs(4));
  for (int i = 0; i < 192; ++i) {  // the fourth block never comes
    const BlockId block = reservation.blocks[static_cast<size_t>(i / kBlockTokens)];
    const std::vector<BlockId> table(static_cast<size_t>(i / kBlockTokens) + 1, block);
    WriteFakeKv(*fake_.kv_store, table, i, prefix.tokens[static_cast<size_t>(i)]);
  }
  fake_.engine->AbandonReservation(prefix.key, 192);
  EXPECT_EQ(fake_.engine->CachedTokens(prompt), 192);
  ASSERT_TRUE(fake_.engine->AddPrefill(prompt).ok());  // under the same key
  int num_computed = 0;
  for (const StepResult& result : StepAll()) num_computed += result.num_prefill_tokens;
  EXPECT_EQ(num_computed, 300 - 192);
  fake_.engine->Release(prompt.key);
}

TEST_F(EngineTest, APinnedPrefixOutlivesItsReservation) {
  ASSERT_TRUE(fake_.engine->AddRun(Input(1, 200, 1)).ok());
  StepAll();
  SequenceInput again = Input(2, 200);
  again.tokens = Input(1, 200).tokens;
  const Reservation reservation = *fake_.engine->Reserve(again);
  ASSERT_EQ(reservation.cached_tokens, 192);
  EXPECT_FALSE(fake_.engine->PinPrefix(again.key, 0, 256).ok());  // behind it lies the network's
  EXPECT_FALSE(fake_.engine->PinPrefix(again.key, 1, 64).ok());
  const PrefixPin pin = *fake_.engine->PinPrefix(again.key, 64, 192);
  EXPECT_THAT(pin.blocks, SizeIs(2));
  EXPECT_EQ(Blocks().sending, 2);
  fake_.engine->AbandonReservation(again.key, 0);
  EXPECT_EQ(Blocks().sending, 2);
  EXPECT_TRUE(absl::IsNotFound(fake_.engine->PinPrefix(again.key, 0, 64).status()));
  ASSERT_TRUE(fake_.engine->CheckIntegrity().ok());
  fake_.engine->Unpin(pin.id);
  fake_.engine->Unpin(pin.id);
  EXPECT_EQ(Blocks().sending, 0);
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
