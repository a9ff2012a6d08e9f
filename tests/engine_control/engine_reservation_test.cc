// Blocks whose KV comes from outside, or goes there: reserved, activated, abandoned, quarantined,
// lent.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine_control/engine_fixture.h"

namespace sluice::testing {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

class EngineReservationTest : public EngineTest {};

TEST_F(EngineReservationTest, ReservationBecomesADecodingSequence) {
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

TEST_F(EngineReservationTest, ActivationMayEndAtOnce) {
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

TEST_F(EngineReservationTest, AbandonKeepsVerifiedBlocksAsPrefix) {
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

TEST_F(EngineReservationTest, WhollyCachedPromptStillReservesItsLastBlock) {
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

TEST_F(EngineReservationTest, ReservationsAndAnswersPromiseGrowth) {
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

TEST_F(EngineReservationTest, ReservationsCountAgainstMaxNumSeqs) {
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(fake_.engine->Reserve(Input(i, 10)).ok());
  EXPECT_EQ(fake_.engine->Reserve(Input(8, 10)).status().code(),
            absl::StatusCode::kResourceExhausted);
}

// A prefill worker reserves for a prefix that it fetches, while prompts wait.
TEST_F(EngineReservationTest, ReservationsLeaveTheFirstInTheQueueItsBlocks) {
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

TEST_F(EngineReservationTest, ReservationsLeaveTheFirstInTheQueueItsPlace) {
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(fake_.engine->Reserve(Input(i, 10)).ok());
  ASSERT_TRUE(fake_.engine->AddPrefill(Input(7, 10)).ok());
  EXPECT_EQ(fake_.engine->Reserve(Input(8, 10)).status().code(),
            absl::StatusCode::kResourceExhausted);
  StepAll();  // computed, and now only its blocks are here
  EXPECT_TRUE(fake_.engine->Reserve(Input(8, 10)).ok());
}

TEST_F(EngineReservationTest, PreemptedReservationIsHandedBack) {
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

TEST_F(EngineReservationTest, WhatADyingTransferHadVerifiedIsCachedAtOnce) {
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
TEST_F(EngineReservationTest, FetchedPrefixIsFoundByThePromptThatFollows) {
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

TEST_F(EngineReservationTest, APinnedPrefixOutlivesItsReservation) {
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

}  // namespace
}  // namespace sluice::testing
