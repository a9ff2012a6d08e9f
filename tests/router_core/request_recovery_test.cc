// What happens to a request when workers are lost or go silent.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/router_core/recovery_fixture.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST_F(NoRecoveryTest, LostDecodeWorkerEndsItsRequests) {
  const RequestId id = SubmitAndDecode(3);
  h_.Play(WorkerLeft{d_, "its stream ended"});
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(id), HasSubstr("decode worker d was lost (stage decode)"));
  EXPECT_EQ(h_.core.num_running(), 0);
}

TEST_F(NoRecoveryTest, LostPrefillWorkerEndsItsRequestsAndFreesDecode) {
  const RequestId id = h_.Submit();
  Grant();
  h_.Play(WorkerLeft{p_, "its stream ended"});
  EXPECT_THAT(Message(id), HasSubstr("prefill worker p was lost (stage prefill)"));
  const std::vector<SendCancel> cancels = h_.Take<SendCancel>();
  ASSERT_EQ(cancels.size(), 1u);
  EXPECT_EQ(cancels[0].to, d_);
}

// CANCELLED means in the table of errors that the client left.
TEST_F(NoRecoveryTest, WhatOneWorkerCancelledAtAnotherIsNotTheClientsDoing) {
  const RequestId id = h_.Submit();
  const AttemptKey key = Grant();
  h_.PlayEnd(d_, key, AttemptEndReason::kFailed,
             absl::CancelledError("cancelled by the prefill worker: cancelled"), "kv_transfer");
  EXPECT_EQ(h_.Result(id).end, GenerationEnd::kFailed);
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(id), HasSubstr("cancelled by the prefill worker"));
}

TEST_F(RecoveryTest, LostDecodeWorkerIsReplacedAndNoTokenIsLostOrRepeated) {
  const RequestId id = SubmitAndDecode(3);
  h_.Play(WorkerLeft{d_, "its stream ended"});
  EXPECT_FALSE(h_.HasEnded(id));
  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  EXPECT_EQ(reserve.to, d2_);
  EXPECT_EQ(reserve.sequence.key.attempt, Attempt(2));
  EXPECT_EQ(reserve.sequence.num_output_tokens, 3);
  EXPECT_THAT(reserve.sequence.tokens, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100, 101, 102));
  EXPECT_EQ(Retries(Stage::kDecode, RetryReason::kWorkerLost), 1u);

  h_.PlayGrant(d2_, reserve.sequence.key);
  const SendPrefill prefill = h_.Take<SendPrefill>().at(0);
  EXPECT_EQ(prefill.sequence.num_output_tokens, 3);
  // A zombie's token, then the new attempt's.
  h_.PlayToken(d_, {id, Attempt(1)}, 3, 999);
  h_.PlayToken(prefill.to, reserve.sequence.key, 3, 103);
  h_.PlayToken(d2_, reserve.sequence.key, 4, 104);
  h_.PlayEnd(d2_, reserve.sequence.key, AttemptEndReason::kStop);
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(100, 101, 102, 103, 104));
  EXPECT_EQ(h_.Result(id).end, GenerationEnd::kStop);
}

TEST_F(RecoveryTest, WhoComesAndGoesIsReportedByName) {
  SubmitAndDecode(3);
  h_.changes.clear();
  h_.Play(WorkerLeft{d_, "its stream ended"});
  WorkerInfo other_model = CoreHarness::Info("x", WorkerRole::kDecode);
  other_model.fingerprint = "another";
  h_.Join(other_model);
  h_.Join("d3", WorkerRole::kDecode);
  std::vector<std::string> changes;
  for (const WorkerChanged& change : h_.changes) {
    changes.push_back(absl::StrCat(kMembershipEventNames[static_cast<int>(change.event)], " ",
                                   change.worker_id, " ", change.num_requests, " ",
                                   change.reason.empty() ? "" : "why"));
  }
  EXPECT_THAT(changes, ElementsAre("leave d 1 why", "incompatible x 0 why", "join d3 0 "));
}

TEST_F(RecoveryTest, OnlyTheFirstTokensAfterALossAreARecovery) {
  SubmitAndDecode(3);
  for (const EmitTokens& emitted : h_.all_emitted) {
    EXPECT_EQ(emitted.since_failure, std::nullopt);
  }
  h_.all_emitted.clear();
  h_.now += absl::Milliseconds(400);  // silence, until it is noticed
  h_.Play(WorkerLeft{d_, "its stream ended"});
  h_.now += absl::Milliseconds(30);
  const AttemptKey key = Grant();
  h_.PlayToken(h_.Take<SendPrefill>().at(0).to, key, 3, 103);
  h_.PlayToken(d2_, key, 4, 104);
  ASSERT_EQ(h_.all_emitted.size(), 2u);
  EXPECT_EQ(h_.all_emitted[0].since_previous, absl::Milliseconds(430));
  EXPECT_EQ(h_.all_emitted[0].since_failure, absl::Milliseconds(30));
  EXPECT_EQ(h_.all_emitted[1].since_failure, std::nullopt);
}

TEST_F(RecoveryTest, ARecoveryThatFailsTooIsMeasuredFromTheLastFailure) {
  SubmitAndDecode(3);
  h_.all_emitted.clear();
  h_.Join("d3", WorkerRole::kDecode);
  h_.Play(WorkerLeft{d_, "its stream ended"});
  const AttemptKey key = Grant();
  h_.now += absl::Milliseconds(20);
  h_.PlayEnd(granted_by_, key, AttemptEndReason::kFailed, absl::InternalError("no"), "decode");
  h_.now += absl::Milliseconds(30);
  const AttemptKey again = Grant();
  h_.PlayToken(h_.Take<SendPrefill>().at(1).to, again, 3, 103);
  ASSERT_EQ(h_.all_emitted.size(), 1u);
  EXPECT_EQ(h_.all_emitted[0].since_failure, absl::Milliseconds(30));
  EXPECT_EQ(h_.all_emitted[0].since_previous, absl::Milliseconds(50));
}

TEST_F(RecoveryTest, LostWhileReserving) {
  const RequestId id = h_.Submit();
  EXPECT_EQ(h_.Take<SendReserve>().at(0).to, d_);
  h_.Play(WorkerLeft{d_, "gone"});
  EXPECT_EQ(h_.Take<SendReserve>().at(0).to, d2_);
  EXPECT_EQ(Retries(Stage::kReserve, RetryReason::kWorkerLost), 1u);
  EXPECT_FALSE(h_.HasEnded(id));
}

TEST_F(RecoveryTest, LostPrefillWorkerBeforeTheFirstToken) {
  h_.Submit();
  const AttemptKey key = Grant();
  EXPECT_EQ(h_.Take<SendPrefill>().at(0).to, p_);
  h_.Play(WorkerLeft{p_, "gone"});
  const std::vector<SendCancel> cancels = h_.Take<SendCancel>();
  ASSERT_EQ(cancels.size(), 1u);
  EXPECT_EQ(cancels[0].to, d_);
  EXPECT_EQ(cancels[0].key, key);
  Grant();
  EXPECT_EQ(h_.Take<SendPrefill>().at(0).to, p2_);
  EXPECT_EQ(Retries(Stage::kPrefill, RetryReason::kWorkerLost), 1u);
}

TEST_F(RecoveryTest, TheNextAttemptGoesWhereTheKvIs) {
  h_.Submit();
  Grant();
  ASSERT_EQ(granted_by_, d_);
  WorkerLoad load = CoreHarness::ReadyLoad();
  load.blocks_free = 50;  // by load alone it would be the other decode worker
  h_.Play(LoadReported{d_, load});
  h_.Take<SendPrefill>();
  h_.Play(WorkerLeft{p_, "gone"});
  Grant();
  EXPECT_EQ(granted_by_, d_);
}

TEST_F(RecoveryTest, LostPrefillWorkerDuringTransferStartsOver) {
  const RequestId id = SubmitAndDecode(1);
  h_.Play(WorkerLeft{p_, "gone"});
  EXPECT_EQ(h_.Take<SendReserve>().at(0).sequence.num_output_tokens, 1);
  EXPECT_EQ(Retries(Stage::kKvTransfer, RetryReason::kWorkerLost), 1u);
  EXPECT_FALSE(h_.HasEnded(id));
}

TEST_F(RecoveryTest, LostPrefillWorkerAfterTheHandoffChangesNothing) {
  const RequestId id = h_.Submit();
  const AttemptKey key = Grant();
  h_.PlayToken(p_, key, 0, 100);
  h_.PlayKv(d_, key);
  h_.sent.clear();
  h_.Play(WorkerLeft{p_, "gone"});
  EXPECT_TRUE(h_.sent.empty());
  h_.PlayToken(d_, key, 1, 101);
  h_.PlayEnd(d_, key, AttemptEndReason::kStop);
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(100, 101));
}

TEST_F(RecoveryTest, FirstTokenLostWithItsPrefillWorkerIsComputedAgain) {
  const RequestId id = h_.Submit();
  const AttemptKey key = Grant();
  h_.Take<SendPrefill>();
  h_.PlayKv(d_, key);
  h_.PlayToken(d_, key, 1, 101);
  h_.Play(WorkerLeft{p_, "gone"});
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre());
  const AttemptKey second = Grant();
  EXPECT_EQ(h_.Take<SendPrefill>().at(0).sequence.num_output_tokens, 0);
  h_.PlayToken(p2_, second, 0, 100);
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(100));
}

TEST_F(RecoveryTest, FirstTokenThatNeverComesIsComputedAgain) {
  const RequestId id = h_.Submit();
  const AttemptKey key = Grant();
  h_.PlayToken(d_, key, 1, 101);
  h_.AdvanceAlive(CoreOptions().first_token_gap_timeout);
  EXPECT_EQ(Retries(Stage::kPrefill, RetryReason::kTimeout), 1u);
  EXPECT_EQ(h_.Take<SendReserve>().at(0).sequence.key, (AttemptKey{id, Attempt(2)}));
  EXPECT_EQ(h_.Take<SendCancel>().size(), 2u);
}

TEST_F(RecoveryTest, TooManyTokensAheadStartOver) {
  const RequestId id = h_.Submit(10, 10'000);
  const AttemptKey key = Grant();
  for (int i = 1; i <= CoreOptions().max_held_tokens; ++i) h_.PlayToken(d_, key, i, i);
  EXPECT_TRUE(h_.Take<SendCancel>().empty());
  h_.PlayToken(d_, key, CoreOptions().max_held_tokens + 1, 0);
  EXPECT_EQ(h_.Take<SendCancel>().size(), 2u);
  EXPECT_FALSE(h_.HasEnded(id));
}

TEST_F(RecoveryTest, SilentWorkerIsLost) {
  const RequestId id = SubmitAndDecode(2);
  h_.now += CoreOptions().worker_timeout;
  for (const SessionId alive : {p_, p2_, d2_}) {
    h_.Play(LoadReported{alive, CoreHarness::ReadyLoad()});
  }
  h_.Play(Tick{});
  const std::vector<CloseSession> closed = h_.Take<CloseSession>();
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0].session, d_);
  EXPECT_EQ(h_.Take<SendReserve>().at(0).to, d2_);
  h_.PlayToken(d_, {id, Attempt(1)}, 2, 999);  // it wakes up
  EXPECT_EQ(h_.Stale(StaleReason::kUnknownSession), 1u);
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(100, 101));
}

TEST_F(RecoveryTest, ARequestThatLosesTwoWorkersIsGivenUp) {
  const RequestId id = SubmitAndDecode(2);
  h_.Play(WorkerLeft{d_, "crashed"});
  const AttemptKey second = Grant();
  EXPECT_EQ(second.attempt, Attempt(2));
  h_.Play(WorkerLeft{d2_, "crashed"});
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(id), HasSubstr("gave up after 2 lost workers"));
  EXPECT_THAT(Message(id), HasSubstr("decode worker d2 was lost (stage prefill)"));
  // The prefill worker of the second attempt is told.
  EXPECT_EQ(h_.Take<SendCancel>().back().to, p_);
}

TEST_F(RecoveryTest, NoWorkerLeftToRecoverOnIsUnavailable) {
  const RequestId id = SubmitAndDecode(2);
  h_.Play(WorkerLeft{d2_, "gone"});
  h_.Play(WorkerLeft{d_, "gone"});
  EXPECT_FALSE(h_.HasEnded(id));
  h_.AdvanceAlive(CoreOptions().no_worker_timeout - absl::Milliseconds(100));
  EXPECT_FALSE(h_.HasEnded(id));
  h_.AdvanceAlive(absl::Milliseconds(200));
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(h_.ends.at(id)[0].reject, RejectReason::kNone) << "its client has tokens";
}

TEST_F(RecoveryTest, AWorkerThatComesBackInTimeTakesTheRequestAtOnce) {
  const RequestId id = SubmitAndDecode(2);
  h_.Play(WorkerLeft{d2_, "gone"});
  h_.Play(WorkerLeft{d_, "gone"});
  h_.AdvanceAlive(CoreOptions().no_worker_timeout / 2);
  const SessionId d3 = h_.Join("d3", WorkerRole::kDecode);
  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  EXPECT_EQ(reserve.to, d3);
  EXPECT_EQ(reserve.sequence.num_output_tokens, 2);
  EXPECT_FALSE(h_.HasEnded(id));
}

TEST_F(RecoveryTest, AnswersThatHaveBegunGoFirstWhenTheRoleIsBack) {
  h_.Play(WorkerLeft{d2_, "gone"});
  h_.Submit(10, 100);  // no token yet
  Grant();
  const RequestId begun = h_.Submit(10, 100);
  const AttemptKey key = Grant();
  h_.PlayToken(h_.Take<SendPrefill>().at(1).to, key, 0, 100);
  h_.Play(WorkerLeft{d_, "gone"});
  h_.AdvanceAlive(absl::Seconds(1));
  h_.sent.clear();
  h_.Join("d3", WorkerRole::kDecode);  // one of the two may start anew at a time
  const std::vector<SendReserve> started = h_.Take<SendReserve>();
  ASSERT_THAT(started, SizeIs(1));
  EXPECT_EQ(started[0].sequence.key.request, begun);
}

}  // namespace
}  // namespace sluice::router
