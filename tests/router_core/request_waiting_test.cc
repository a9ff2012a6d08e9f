// What a running request waits for, for how long by cause, and whom it keeps waiting meanwhile.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class RequestWaitingTest : public ::testing::Test {
 protected:
  RequestWaitingTest() {
    p_ = h_.Join("p", WorkerRole::kPrefill);
    d_ = h_.Join("d", WorkerRole::kDecode);
    h_.sent.clear();
  }
  // Each Reserve of the next `time` is answered Busy.
  void Refuse(absl::Duration time) {
    const absl::Duration step = absl::Milliseconds(20);
    for (absl::Duration past; past < time; past += step) {
      for (const SendReserve& reserve : h_.Take<SendReserve>()) {
        h_.Play(AnsweredBusy{reserve.to, reserve.sequence.key, "full", absl::ZeroDuration()});
      }
      h_.AdvanceAlive(step);
    }
  }
  // Goes on until the core asks for a place, and gives it.
  AttemptKey GrantNext() {
    for (int i = 0; i < 100; ++i) {
      for (const SendReserve& reserve : h_.Take<SendReserve>()) {
        h_.PlayGrant(reserve.to, reserve.sequence.key);
        return reserve.sequence.key;
      }
      h_.AdvanceAlive(absl::Milliseconds(20));
    }
    ADD_FAILURE() << "nothing was reserved";
    return {};
  }

  CoreHarness h_;
  SessionId p_, d_;
};

TEST_F(RequestWaitingTest, WhoeverWaitsForAnAnswerHoldsNobodyBack) {
  h_.Submit();
  h_.AdvanceAlive(CoreOptions().reserve_timeout + 2 * CoreOptions().starvation_patience);
  EXPECT_THAT(h_.Take<SendReserve>(), SizeIs(2)) << "asked again after the first timeout";
  h_.Submit();
  EXPECT_EQ(h_.core.num_queued(), 0);
  EXPECT_THAT(h_.Take<SendReserve>(), SizeIs(1));
}

// While it is asked for once more, those that wait behind it must not run in between; but not for
// longer than an answer takes.
TEST_F(RequestWaitingTest, AnUnansweredReserveEndsTheRightOfWay) {
  h_.Submit(500);
  Refuse(2 * CoreOptions().starvation_patience);
  while (h_.Take<SendReserve>().empty()) h_.AdvanceAlive(absl::Milliseconds(20));
  h_.Submit();
  h_.AdvanceAlive(CoreOptions().starvation_patience / 2);
  EXPECT_EQ(h_.core.num_queued(), 1);
  h_.AdvanceAlive(CoreOptions().starvation_patience / 2);
  EXPECT_EQ(h_.core.num_queued(), 0);
  EXPECT_THAT(h_.Take<SendReserve>(), SizeIs(1));
}

TEST_F(RequestWaitingTest, ARefusalGivesTheRightOfWayAgain) {
  h_.Submit(500);
  Refuse(2 * CoreOptions().starvation_patience);
  std::vector<SendReserve> reserves;
  while (reserves.empty()) {
    h_.AdvanceAlive(absl::Milliseconds(20));
    reserves = h_.Take<SendReserve>();
  }
  h_.AdvanceAlive(2 * CoreOptions().starvation_patience);
  h_.Play(AnsweredBusy{d_, reserves[0].sequence.key, "full", absl::ZeroDuration()});
  h_.Submit();
  EXPECT_EQ(h_.core.num_queued(), 1);
}

// ---- Each cause has a clock of its own

TEST_F(RequestWaitingTest, TimeWithoutRoomIsNotTimeWithoutAWorker) {
  const RequestId id = h_.Submit();
  Refuse(CoreOptions().no_worker_timeout + absl::Seconds(2));
  h_.Play(WorkerLeft{p_, "restarted"});
  h_.AdvanceAlive(CoreOptions().no_worker_timeout / 2);
  EXPECT_FALSE(h_.HasEnded(id));
  p_ = h_.Join("p", WorkerRole::kPrefill);
  GrantNext();
  EXPECT_THAT(h_.Take<SendPrefill>(), SizeIs(1));
}

TEST_F(RequestWaitingTest, AWorkerThatWasThereInBetweenStartsTheClockAnew) {
  const RequestId id = h_.Submit();
  Refuse(absl::Milliseconds(100));
  for (int i = 0; i < 5; ++i) {
    h_.Play(WorkerLeft{p_, "restarted"});
    h_.AdvanceAlive(CoreOptions().no_worker_timeout * 2 / 3);
    ASSERT_FALSE(h_.HasEnded(id)) << i;
    p_ = h_.Join("p", WorkerRole::kPrefill);
    Refuse(absl::Seconds(2));
  }
  h_.Play(WorkerLeft{p_, "gone"});
  Refuse(CoreOptions().no_worker_timeout + absl::Seconds(2));
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(RequestWaitingTest, WhatPassedBeforeAWorkerTookItIsForgotten) {
  const RequestId id = h_.Submit();
  Refuse(absl::Milliseconds(20));
  GrantNext();
  h_.AdvanceAlive(absl::Seconds(10));  // a long prompt
  h_.Play(WorkerLeft{p_, "killed"});
  h_.AdvanceAlive(CoreOptions().no_worker_timeout - absl::Milliseconds(100));
  ASSERT_FALSE(h_.HasEnded(id));
  h_.AdvanceAlive(absl::Milliseconds(200));
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(h_.Result(id).status.message()),
              HasSubstr("no ready prefill worker for 3"));
}

TEST_F(RequestWaitingTest, TimeWithoutRoomBeforeAFailedAttemptIsForgotten) {
  const RequestId id = h_.Submit();
  Refuse(CoreOptions().capacity_timeout * 2 / 3);
  const AttemptKey key = GrantNext();
  h_.PlayEnd(p_, key, AttemptEndReason::kFailed, absl::InternalError("it broke"), "prefill");
  Refuse(CoreOptions().capacity_timeout * 2 / 3);
  EXPECT_FALSE(h_.HasEnded(id));
  Refuse(CoreOptions().capacity_timeout);
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(RequestWaitingTest, APrefillWorkerThatStaysFullIsWaitedForNoLongerThanForRoom) {
  const RequestId id = h_.Submit();
  const absl::Time start = h_.now;
  while (!h_.HasEnded(id) && h_.now < start + 2 * CoreOptions().capacity_timeout) {
    for (const SendReserve& reserve : h_.Take<SendReserve>()) {
      h_.PlayGrant(reserve.to, reserve.sequence.key);
    }
    for (const SendPrefill& prefill : h_.Take<SendPrefill>()) {
      h_.PlayEnd(prefill.to, prefill.sequence.key, AttemptEndReason::kFailed,
                 absl::ResourceExhaustedError("queue full"), "prefill");
    }
    h_.AdvanceAlive(absl::Milliseconds(200));
  }
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NEAR(absl::ToDoubleSeconds(h_.now - start),
              absl::ToDoubleSeconds(CoreOptions().capacity_timeout), 2);
}

// ---- A context that only an absent worker has room for

class UnevenFleetTest : public RequestWaitingTest {
 protected:
  UnevenFleetTest() {
    WorkerInfo small = CoreHarness::Info("small", WorkerRole::kDecode);
    small.max_model_len = 12;
    h_.Join(small);
    h_.sent.clear();
    id_ = h_.Submit(10, 100);
    const AttemptKey key = h_.Take<SendReserve>().at(0).sequence.key;  // of d, first by name
    h_.PlayGrant(d_, key);
    h_.PlayToken(p_, key, 0, 100);
    h_.PlayKv(d_, key);
    for (int i = 1; i < 5; ++i) h_.PlayToken(d_, key, i, 100 + i);
    h_.sent.clear();
  }

  RequestId id_;
};

TEST_F(UnevenFleetTest, AnAnswerThatOutgrewTheOthersWaitsForItsWorker) {
  h_.Play(WorkerLeft{d_, "restarted"});
  h_.AdvanceAlive(CoreOptions().no_worker_timeout / 2);
  ASSERT_FALSE(h_.HasEnded(id_));
  d_ = h_.Join("d", WorkerRole::kDecode);
  const AttemptKey key = GrantNext();
  h_.PlayToken(p_, key, 5, 105);
  EXPECT_THAT(h_.emitted_tokens[id_], SizeIs(6));
}

TEST_F(UnevenFleetTest, ButNotForEver) {
  h_.Play(WorkerLeft{d_, "gone"});
  h_.AdvanceAlive(CoreOptions().no_worker_timeout + absl::Milliseconds(100));
  EXPECT_EQ(h_.Result(id_).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(h_.Result(id_).status.message()),
              HasSubstr("no ready worker with a context of more than 15 tokens for 3"));
}

TEST_F(UnevenFleetTest, AShortPrefillWorkerIsNoPartnerForALongPrompt) {
  WorkerInfo small = CoreHarness::Info("a", WorkerRole::kPrefill);
  small.max_model_len = 12;
  h_.Join(small);
  h_.Play(WorkerLeft{p_, "restarted"});
  h_.Play(AttemptPreempted{d_, {id_, Attempt(1)}});
  EXPECT_THAT(h_.Take<SendReserve>(), IsEmpty()) << "nobody could prefill it";
  h_.AdvanceAlive(CoreOptions().no_worker_timeout / 2);
  ASSERT_FALSE(h_.HasEnded(id_));
  p_ = h_.Join("p", WorkerRole::kPrefill);
  GrantNext();
  EXPECT_EQ(h_.Take<SendPrefill>().at(0).to, p_);
}

TEST_F(UnevenFleetTest, ANewRequestThatIsTooLongIsRefusedAtOnce) {
  h_.Play(WorkerLeft{d_, "gone"});
  EXPECT_EQ(h_.Result(h_.Submit(20)).status.code(), absl::StatusCode::kOutOfRange);
}

// ---- A prefill worker with a shorter context than the decode worker

class ShortPrefillTest : public ::testing::Test {
 protected:
  ShortPrefillTest() {
    WorkerInfo info = CoreHarness::Info("p", WorkerRole::kPrefill);
    info.max_model_len = 20;
    p_ = h_.Join(info);
    info = CoreHarness::Info("d", WorkerRole::kDecode);
    info.max_model_len = 100;
    d_ = h_.Join(info);
    h_.sent.clear();
    id_ = h_.Submit(10, 200);
    key_ = h_.Take<SendReserve>().at(0).sequence.key;
    h_.PlayGrant(d_, key_);
    h_.PlayToken(p_, key_, 0, 200);
    h_.PlayKv(d_, key_);
    h_.PlayEnd(p_, key_, AttemptEndReason::kHandedOver);
    for (int i = 1; i < 30; ++i) h_.PlayToken(d_, key_, i, 200 + i);
    h_.sent.clear();
  }

  CoreHarness h_;
  SessionId p_, d_;
  RequestId id_;
  AttemptKey key_;
};

TEST_F(ShortPrefillTest, AnAnswerThatOutgrewItIsNotComplete) {
  h_.Play(WorkerLeft{d_, "lost"});
  ASSERT_FALSE(h_.HasEnded(id_)) << "40 tokens of 100";
  h_.Join("d", WorkerRole::kDecode);
  h_.AdvanceAlive(CoreOptions().no_worker_timeout / 2);
  ASSERT_FALSE(h_.HasEnded(id_));
  EXPECT_THAT(h_.Take<SendReserve>(), IsEmpty()) << "nobody could prefill 40 tokens";

  const SessionId p2 = h_.Join("p2", WorkerRole::kPrefill);
  h_.AdvanceAlive(CoreOptions().max_retry_pause);
  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  h_.PlayGrant(reserve.to, reserve.sequence.key);
  const SendPrefill prefill = h_.Take<SendPrefill>().at(0);
  EXPECT_EQ(prefill.to, p2);
  EXPECT_EQ(prefill.sequence.num_output_tokens, 30);
  h_.PlayToken(p2, reserve.sequence.key, 30, 230);
  EXPECT_THAT(h_.emitted_tokens[id_], SizeIs(31));
}

TEST_F(ShortPrefillTest, WithoutALongerOneItFailsAsForWantOfAWorker) {
  h_.Play(AttemptPreempted{d_, key_});
  ASSERT_FALSE(h_.HasEnded(id_));
  h_.AdvanceAlive(CoreOptions().no_worker_timeout + absl::Milliseconds(100));
  EXPECT_EQ(h_.Result(id_).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(h_.Result(id_).status.message()),
              HasSubstr("no ready worker with a context of more than 40 tokens"));
}

TEST_F(ShortPrefillTest, AFullContextOfTheDecodeWorkerIsComplete) {
  for (int i = 30; i < 90; ++i) h_.PlayToken(d_, key_, i, 200 + i);
  h_.Play(WorkerLeft{d_, "lost"});
  EXPECT_EQ(h_.Result(id_).end, GenerationEnd::kLength);
}

}  // namespace
}  // namespace sluice::router
