// What happens to a request when workers are lost, fail, hand it back, or go silent.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

CoreOptions NoRecovery() {
  CoreOptions options;
  options.recovery = false;
  return options;
}

class RecoveryTest : public ::testing::Test {
 protected:
  explicit RecoveryTest(CoreOptions options = {}) : h_(std::move(options)) {
    p_ = h_.Join("p", WorkerRole::kPrefill);
    p2_ = h_.Join("p2", WorkerRole::kPrefill);
    d_ = h_.Join("d", WorkerRole::kDecode);
    d2_ = h_.Join("d2", WorkerRole::kDecode);
    h_.sent.clear();
  }
  // Grants what was reserved and takes the Prefill that follows.
  AttemptKey Grant() {
    const SendReserve reserve = h_.Take<SendReserve>().at(0);
    granted_by_ = reserve.to;
    h_.PlayGrant(reserve.to, reserve.sequence.key);
    return reserve.sequence.key;
  }
  RequestId SubmitAndDecode(int num_tokens) {
    const RequestId id = h_.Submit(10, 100);
    const AttemptKey key = Grant();
    h_.Take<SendPrefill>();
    h_.PlayToken(p_, key, 0, 100);
    if (num_tokens == 1) return id;
    h_.PlayKv(d_, key);
    h_.PlayEnd(p_, key, AttemptEndReason::kHandedOver);
    for (int i = 1; i < num_tokens; ++i) h_.PlayToken(d_, key, i, 100 + i);
    return id;
  }
  std::string Message(RequestId id) { return std::string(h_.Result(id).status.message()); }
  uint64_t Retries(Stage stage, RetryReason reason) {
    return h_.core.counters().retries[static_cast<int>(stage)][static_cast<int>(reason)];
  }

  CoreHarness h_;
  SessionId p_, p2_, d_, d2_;
  SessionId granted_by_;
};

// Twenty running requests lose their worker: four start anew at once, each first token lets one
// more.
TEST(RetryBudgetTest, AFifthOfTheRunningRequestsStartsAnewAtOnce) {
  CoreHarness h;
  const SessionId p = h.Join("p", WorkerRole::kPrefill);
  const SessionId d = h.Join("d", WorkerRole::kDecode);
  std::vector<RequestId> ids;
  for (int i = 0; i < 20; ++i) {
    h.sent.clear();
    ids.push_back(h.Submit(10, 100));
    const AttemptKey key = h.Take<SendReserve>().at(0).sequence.key;
    h.PlayGrant(d, key);
    h.PlayToken(p, key, 0, 7);
    h.PlayKv(d, key);
    h.PlayToken(d, key, 1, 8);
  }
  const SessionId d2 = h.Join("d2", WorkerRole::kDecode);
  h.sent.clear();
  h.Play(WorkerLeft{d, "killed"});
  std::vector<SendReserve> started = h.Take<SendReserve>();
  ASSERT_EQ(started.size(), 4u);
  EXPECT_EQ(h.core.retries().num_waiting(), 16u);

  // One that waits is cancelled: it leaves the line, nobody else starts.
  const auto is_started = [&started](RequestId id) {
    return std::any_of(started.begin(), started.end(),
                       [id](const SendReserve& s) { return s.sequence.key.request == id; });
  };
  const auto waiting = std::find_if_not(ids.begin(), ids.end(), is_started);
  h.Play(RequestCancelled{*waiting, false});
  EXPECT_EQ(h.core.retries().num_waiting(), 15u);
  EXPECT_TRUE(h.Take<SendReserve>().empty());

  size_t num_started = started.size();
  while (!started.empty()) {
    const AttemptKey key = started.back().sequence.key;
    started.pop_back();
    h.PlayGrant(d2, key);
    h.PlayToken(p, key, 2, 9);
    for (SendReserve& next : h.Take<SendReserve>()) {
      ++num_started;
      started.push_back(std::move(next));
    }
    EXPECT_LE(h.core.retries().num_places_taken(), 4u);
  }
  EXPECT_EQ(num_started, 19u);
  EXPECT_EQ(h.core.retries().num_waiting(), 0u);
  EXPECT_EQ(h.core.retries().num_places_taken(), 0u);
}

RequestId Id(int number) {
  RequestId id;
  id.bytes[0] = static_cast<uint8_t>(number);
  return id;
}

// A request that waits for a slow worker does not keep the others from starting.
TEST(RetryBudgetTest, APlaceIsHeldForALimitedTime) {
  RetryBudget budget(0.2, absl::Milliseconds(500));
  const absl::Time now = absl::UnixEpoch();
  EXPECT_TRUE(budget.Acquire(Id(1), false, 5, now));
  EXPECT_FALSE(budget.Acquire(Id(2), false, 5, now));
  EXPECT_FALSE(budget.Acquire(Id(3), false, 5, now));
  EXPECT_EQ(budget.NextChange(), now + absl::Milliseconds(500));
  EXPECT_EQ(budget.TakeNext(5, now + absl::Milliseconds(499)), std::nullopt);
  EXPECT_EQ(budget.TakeNext(5, now + absl::Milliseconds(500)), Id(2));
  EXPECT_TRUE(budget.Acquire(Id(1), false, 5, now + absl::Seconds(1)))
      << "it stays one that may go on";
  EXPECT_EQ(budget.num_places_taken(), 1u);
  budget.Release(Id(2));
  EXPECT_EQ(budget.TakeNext(5, now + absl::Seconds(1)), Id(3));
  EXPECT_EQ(budget.NextChange(), absl::InfiniteFuture()) << "nobody waits";
}

TEST(RetryBudgetTest, AnswersThatHaveBegunGoFirst) {
  RetryBudget budget(0.2, absl::Milliseconds(500));
  const absl::Time now = absl::UnixEpoch();
  EXPECT_TRUE(budget.Acquire(Id(1), false, 5, now));
  EXPECT_FALSE(budget.Acquire(Id(2), /*mid_answer=*/false, 5, now));
  EXPECT_FALSE(budget.Acquire(Id(3), /*mid_answer=*/true, 5, now));
  EXPECT_FALSE(budget.Acquire(Id(4), /*mid_answer=*/true, 5, now));
  EXPECT_FALSE(budget.Acquire(Id(5), /*mid_answer=*/true, 5, now));
  budget.Release(Id(4));
  EXPECT_EQ(budget.num_waiting(), 3u);
  std::vector<RequestId> order;
  for (RequestId last = Id(1); budget.num_waiting() > 0; last = order.back()) {
    budget.Release(last);
    order.push_back(budget.TakeNext(5, now).value());
  }
  EXPECT_THAT(order, ElementsAre(Id(3), Id(5), Id(2)));
}

// While no worker is there, nobody holds a place: all give up in their own time, not one after the
// other.
TEST(RetryBudgetTest, WaitingForAWorkerTakesNoPlace) {
  CoreHarness h;
  const SessionId p = h.Join("p", WorkerRole::kPrefill);
  const SessionId d = h.Join("d", WorkerRole::kDecode);
  std::vector<RequestId> ids;
  for (int i = 0; i < 10; ++i) {
    ids.push_back(h.Submit(10, 100));
    const AttemptKey key = h.Take<SendReserve>().at(0).sequence.key;
    h.PlayGrant(d, key);
    h.PlayToken(p, key, 0, 7);
  }
  h.Play(WorkerLeft{d, "killed"});
  EXPECT_EQ(h.core.retries().num_places_taken(), 0u);
  EXPECT_EQ(h.core.retries().num_waiting(), 0u);
  for (int i = 0; i < 400; ++i) {
    h.now += absl::Milliseconds(10);
    h.Play(Tick{});
  }
  for (const RequestId id : ids) EXPECT_TRUE(h.HasEnded(id));
}

class NoRecoveryTest : public RecoveryTest {
 protected:
  NoRecoveryTest() : RecoveryTest(NoRecovery()) {}
};

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

TEST_F(RecoveryTest, PreemptedRequestIsPrefilledAnewWithItsTokens) {
  const RequestId id = SubmitAndDecode(4);
  h_.Play(AttemptPreempted{d_, {id, Attempt(1)}});
  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  EXPECT_EQ(reserve.sequence.key.attempt, Attempt(2));
  EXPECT_EQ(reserve.sequence.num_output_tokens, 4);
  EXPECT_EQ(Retries(Stage::kDecode, RetryReason::kPreempted), 1u);
  EXPECT_TRUE(h_.Take<SendCancel>().empty());  // both ended it themselves
}

TEST_F(RecoveryTest, PreemptionsAreBounded) {
  const RequestId id = h_.Submit(10, 900);
  int preemptions = 0;
  for (; !h_.HasEnded(id) && preemptions < 100; ++preemptions) {
    const SendReserve reserve = h_.Take<SendReserve>().at(0);
    h_.PlayGrant(reserve.to, reserve.sequence.key);
    const SendPrefill prefill = h_.Take<SendPrefill>().at(0);
    h_.PlayToken(prefill.to, reserve.sequence.key, preemptions, preemptions);
    h_.PlayKv(reserve.to, reserve.sequence.key);
    h_.PlayEnd(prefill.to, reserve.sequence.key, AttemptEndReason::kHandedOver);
    h_.Play(AttemptPreempted{reserve.to, reserve.sequence.key});
  }
  EXPECT_EQ(preemptions, CoreOptions().max_preemptions + 1);
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kResourceExhausted);
}

// Whatever code a worker fails with, its client reads that a worker failed: not that the router has
// no room (UNAVAILABLE), does not know the model (NOT_FOUND) or is defective (FAILED_PRECONDITION).
class FailureCodeTest : public RecoveryTest,
                        public ::testing::WithParamInterface<absl::StatusCode> {
 protected:
  absl::Status Failure() const { return absl::Status(GetParam(), "it broke"); }
};

INSTANTIATE_TEST_SUITE_P(
    Codes, FailureCodeTest,
    ::testing::Values(absl::StatusCode::kInternal, absl::StatusCode::kUnavailable,
                      absl::StatusCode::kFailedPrecondition, absl::StatusCode::kNotFound,
                      absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kCancelled));

TEST_P(FailureCodeTest, FailedAttemptsAreRetriedAFewTimes) {
  const RequestId id = h_.Submit();
  std::vector<SessionId> tried;
  for (int i = 0; i < 20 && !h_.HasEnded(id); ++i) {
    const AttemptKey key = Grant();
    for (const SendPrefill& prefill : h_.Take<SendPrefill>()) {
      tried.push_back(prefill.to);
      h_.PlayEnd(prefill.to, key, AttemptEndReason::kFailed, Failure(), "kv_transfer");
    }
    h_.AdvanceAlive(absl::Seconds(1));
  }
  ASSERT_EQ(static_cast<int>(tried.size()), CoreOptions().max_failures);
  EXPECT_EQ(tried[0], p_);
  EXPECT_EQ(tried[1], p2_);  // another one first
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(h_.Result(id).retry_after, std::nullopt);
  EXPECT_THAT(Message(id), HasSubstr("it broke (stage kv_transfer)"));
  EXPECT_EQ(Retries(Stage::kKvTransfer, RetryReason::kFailed), tried.size() - 1);
}

// Full pools count as no failure only before the first token.
TEST_F(NoRecoveryTest, AFailureAmidTheAnswerIsAWorkersFailure) {
  for (const absl::StatusCode code :
       {absl::StatusCode::kUnavailable, absl::StatusCode::kResourceExhausted}) {
    const RequestId id = h_.Submit();
    const AttemptKey key = Grant();
    h_.PlayToken(h_.Take<SendPrefill>().at(0).to, key, 0, 100);
    h_.PlayEnd(granted_by_, key, AttemptEndReason::kFailed, absl::Status(code, "draining"),
               "decode");
    EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(Message(id), HasSubstr("draining (stage decode)"));
  }
}

TEST_F(RecoveryTest, FailedTransferAvoidsBothEnds) {
  h_.Submit();
  const AttemptKey key = Grant();
  ASSERT_EQ(granted_by_, d_);
  ASSERT_EQ(h_.Take<SendPrefill>().at(0).to, p_);
  // The prefill worker hangs: the decode worker notices before the router does.
  h_.PlayEnd(d_, key, AttemptEndReason::kFailed, absl::UnavailableError("no sign of life"),
             "kv_transfer");
  Grant();
  EXPECT_EQ(granted_by_, d2_);
  EXPECT_EQ(h_.Take<SendPrefill>().at(0).to, p2_);
}

TEST_F(RecoveryTest, FailuresBeforeProgressDoNotAddUp) {
  const RequestId id = h_.Submit(10, 900);
  int index = 0;
  for (int i = 0; i < 2 * CoreOptions().max_failures; ++i) {
    const AttemptKey key = Grant();
    const SessionId prefill = h_.Take<SendPrefill>().at(0).to;
    h_.PlayToken(prefill, key, index, 100 + index);
    h_.PlayKv(granted_by_, key);
    h_.PlayEnd(prefill, key, AttemptEndReason::kHandedOver);
    ++index;
    h_.PlayToken(granted_by_, key, index, 100 + index);
    ++index;
    h_.PlayEnd(granted_by_, key, AttemptEndReason::kFailed, absl::InternalError("x"), "decode");
    h_.AdvanceAlive(absl::Seconds(1));
    ASSERT_FALSE(h_.HasEnded(id)) << i;
  }
}

TEST_F(RecoveryTest, WhatIsTheRequestsOwnFaultIsNotRetried) {
  const RequestId id = h_.Submit();
  const AttemptKey key = Grant();
  h_.Take<SendPrefill>();
  h_.PlayEnd(p_, key, AttemptEndReason::kFailed,
             absl::InvalidArgumentError("token 9 outside the vocabulary"), "prefill");
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(id),
              HasSubstr("prefill worker p: token 9 outside the vocabulary (stage prefill)"));
  EXPECT_EQ(h_.Take<SendCancel>().at(0).to, d_);
}

TEST_F(RecoveryTest, FullPrefillQueuesAreNoFailure) {
  const RequestId id = h_.Submit();
  for (int round = 0; round < 10; ++round) {
    while (true) {
      const std::vector<SendReserve> reserves = h_.Take<SendReserve>();
      if (reserves.empty()) break;
      h_.PlayGrant(reserves[0].to, reserves[0].sequence.key);
      for (const SendPrefill& prefill : h_.Take<SendPrefill>()) {
        h_.PlayEnd(prefill.to, prefill.sequence.key, AttemptEndReason::kFailed,
                   absl::ResourceExhaustedError("queue full"), "prefill");
      }
    }
    ASSERT_FALSE(h_.HasEnded(id));
    h_.AdvanceAlive(absl::Seconds(1));
  }
  const AttemptKey key = Grant();
  h_.PlayToken(h_.Take<SendPrefill>().at(0).to, key, 0, 1);
  EXPECT_EQ(h_.emitted_tokens[id].size(), 1u);
  h_.Play(RequestCancelled{id});
  for (const auto& [session, member] : h_.core.membership().members()) {
    EXPECT_EQ(member.assigned_requests, 0);
  }
}

TEST_F(RecoveryTest, ReserveWithoutAnswerGoesElsewhere) {
  h_.Submit();
  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  h_.AdvanceAlive(CoreOptions().reserve_timeout);
  EXPECT_EQ(h_.Take<SendCancel>().at(0).to, d_);
  const SendReserve second = h_.Take<SendReserve>().at(0);
  EXPECT_EQ(second.to, d2_);
  EXPECT_EQ(second.sequence.key.attempt, Attempt(2));
  // The late grant is not used, and is given back.
  h_.PlayGrant(d_, reserve.sequence.key);
  EXPECT_TRUE(h_.Take<SendPrefill>().empty());
  EXPECT_EQ(h_.Take<SendCancel>().at(0).to, d_);
  EXPECT_EQ(h_.Stale(StaleReason::kStaleAttempt), 1u);
}

TEST_F(RecoveryTest, AGrantOfMoreThanTheSequenceIsItsWorkersFailure) {
  h_.Submit(10);
  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  router::Grant grant;
  grant.cached_tokens = 64;
  h_.Play(Granted{reserve.to, reserve.sequence.key, grant});
  EXPECT_TRUE(h_.Take<SendPrefill>().empty());
  EXPECT_EQ(h_.Take<SendCancel>().at(0).to, reserve.to);
  EXPECT_EQ(Retries(Stage::kReserve, RetryReason::kFailed), 1u);
  EXPECT_NE(h_.Take<SendReserve>().at(0).to, reserve.to);
}

TEST_F(RecoveryTest, PrefillWorkersGoneAfterTheGrant) {
  h_.Submit();
  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  h_.Play(WorkerLeft{p_, "gone"});
  h_.Play(WorkerLeft{p2_, "gone"});
  h_.PlayGrant(d_, reserve.sequence.key);
  EXPECT_EQ(h_.Take<SendCancel>().at(0).to, d_);  // its blocks are not held meanwhile
  const SessionId b = h_.Join("b", WorkerRole::kBoth);
  h_.AdvanceAlive(absl::Seconds(1));
  EXPECT_EQ(h_.Take<SendRun>().at(0).to, b);
}

TEST_F(RecoveryTest, CompleteAnswerWhoseEndWasLostEnds) {
  GenerationSpec spec = h_.Spec(10, 100);
  spec.sampling.stop_token_ids = {2};
  const RequestId stopped = h_.Submit(spec);
  AttemptKey key = Grant();
  h_.PlayToken(h_.Take<SendPrefill>().at(0).to, key, 0, 100);
  h_.PlayToken(granted_by_, key, 1, 2);
  h_.Play(AttemptPreempted{granted_by_, key});
  EXPECT_EQ(h_.Result(stopped).end, GenerationEnd::kStop);

  const RequestId full = h_.Submit(10, 2);
  key = Grant();
  h_.PlayToken(h_.Take<SendPrefill>().at(0).to, key, 0, 100);
  h_.PlayToken(granted_by_, key, 1, 101);
  h_.Play(WorkerLeft{granted_by_, "gone"});
  EXPECT_EQ(h_.Result(full).end, GenerationEnd::kLength);
  EXPECT_TRUE(h_.Result(full).status.ok());
}

TEST_F(RecoveryTest, AnswerWithAHoleIsComputedAgain) {
  const RequestId id = SubmitAndDecode(2);
  h_.PlayToken(d_, {id, Attempt(1)}, 3, 103);
  h_.PlayEnd(d_, {id, Attempt(1)}, AttemptEndReason::kStop);
  EXPECT_FALSE(h_.HasEnded(id));
  EXPECT_EQ(h_.Take<SendReserve>().at(0).sequence.num_output_tokens, 2);
}

TEST_F(RecoveryTest, RestartedWorkerLosesItsOldRequests) {
  const RequestId id = SubmitAndDecode(2);
  WorkerInfo info = CoreHarness::Info("d", WorkerRole::kDecode);
  info.incarnation = Incarnation(2);
  h_.Play(WorkerRegistered{SessionId(50), info});
  EXPECT_EQ(h_.Take<SendReserve>().at(0).to, d2_);
  EXPECT_FALSE(h_.HasEnded(id));
}

}  // namespace
}  // namespace sluice::router
