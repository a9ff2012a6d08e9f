// What happens to a request when workers fail it, hand it back, or answer what makes no sense.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/router_core/recovery_fixture.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;

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
