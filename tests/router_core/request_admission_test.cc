// Which requests start, wait or are refused: no workers, full queues, busy workers, a drain.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/router_core/request_fixture.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;

class RequestAdmissionTest : public RequestTest {};

TEST_F(RequestAdmissionTest, NoWorkerIsUnavailableAtOnce) {
  const RequestId id = h_.Submit();
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(h_.Result(id).status.message()), HasSubstr("no ready prefill worker"));
  EXPECT_EQ(h_.Result(id).retry_after, std::nullopt);  // nobody knows when one comes
  p_ = h_.Join("p", WorkerRole::kPrefill);
  const RequestId second = h_.Submit();
  EXPECT_THAT(std::string(h_.Result(second).status.message()), HasSubstr("no ready decode worker"));
  EXPECT_EQ(h_.ends.at(second)[0].reject, RejectReason::kNoDecode);
  ExpectNothingLeft();
}

// A restarting worker costs new requests a pause, not an error; a lost role is refused after its
// time.
TEST_F(RequestAdmissionTest, ANewRequestWaitsForAWorkerThatWasThereAMomentAgo) {
  JoinPair();
  const auto pass = [this](int milliseconds) {
    for (int i = 0; i < milliseconds; i += 100) {
      h_.now += absl::Milliseconds(100);
      h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
      h_.Play(Tick{});
    }
  };
  h_.Play(WorkerLeft{p_, "restarted"});
  pass(100);
  const RequestId id = h_.Submit();
  pass(2000);
  EXPECT_FALSE(h_.HasEnded(id));
  p_ = h_.Join("p", WorkerRole::kPrefill);
  EXPECT_EQ(h_.Take<SendReserve>().size(), 1u);
  h_.Play(RequestCancelled{id, false});

  h_.Play(WorkerLeft{p_, "gone"});
  const RequestId waits = h_.Submit();
  pass(2900);
  EXPECT_FALSE(h_.HasEnded(waits));
  pass(100);
  EXPECT_EQ(h_.Result(waits).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(h_.HasEnded(h_.Submit())) << "now at once";
}

// Small requests must not take every block that becomes free from a large one that waits for many.
TEST_F(RequestAdmissionTest, NewRequestsDoNotOvertakeOneThatStarves) {
  JoinPair();
  const RequestId large = h_.Submit(500, 100);
  const AttemptKey key = h_.Take<SendReserve>().at(0).sequence.key;
  const auto refuse_for = [this, key](int milliseconds) {
    for (int i = 0; i < milliseconds; i += 100) {
      h_.Play(AnsweredBusy{d_, key, "full", absl::ZeroDuration()});
      h_.now += absl::Milliseconds(100);
      h_.Play(LoadReported{p_, CoreHarness::ReadyLoad()});
      h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
      h_.Play(Tick{});
    }
    h_.sent.clear();
  };
  refuse_for(500);
  h_.Submit(10, 10);
  EXPECT_EQ(h_.Take<SendReserve>().size(), 1u) << "it has not waited for long";
  refuse_for(2000);
  h_.Submit(10, 10);
  EXPECT_TRUE(h_.Take<SendReserve>().empty());
  EXPECT_EQ(h_.core.num_queued(), 1);
  // It is asked for again and again; now there is room.
  while (h_.core.num_queued() == 1 && !h_.HasEnded(large)) {
    h_.now += absl::Milliseconds(100);
    h_.Play(LoadReported{p_, CoreHarness::ReadyLoad()});
    h_.Play(LoadReported{d_, CoreHarness::ReadyLoad()});
    h_.Play(Tick{});
    for (const SendReserve& reserve : h_.Take<SendReserve>()) {
      if (reserve.sequence.key.request == large) h_.PlayGrant(d_, reserve.sequence.key);
    }
  }
  EXPECT_EQ(h_.core.num_queued(), 0);
  EXPECT_FALSE(h_.HasEnded(large));
}

TEST_F(RequestAdmissionTest, RefusesEmptyPromptsAndTooLongOnes) {
  JoinPair();
  EXPECT_EQ(h_.Result(h_.Submit(0, 5)).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h_.Result(h_.Submit(5, 0)).status.code(), absl::StatusCode::kInvalidArgument);
  const RequestId too_long = h_.Submit(1000, 5);
  // The fronts' context_length_exceeded.
  EXPECT_EQ(h_.Result(too_long).status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(h_.Result(too_long).status.message()),
              HasSubstr("maximum context length is 1000 tokens"));
  EXPECT_FALSE(h_.HasEnded(h_.Submit(999, 5)));
}

// Refused clients are told how long the queue takes at the rate at which it moves.
TEST_F(RequestAdmissionTest, RetryAfterFollowsTheQueueAndItsRate) {
  CoreOptions options;
  options.max_running_requests = 1;
  options.max_queued_requests = 19;
  options.queue_timeout = absl::Hours(1);
  const auto retry_after = [&](absl::Duration per_request) {
    CoreHarness h(options);
    const SessionId b = h.Join("b", WorkerRole::kBoth);
    h.Submit();
    const absl::Time end = h.now + absl::Minutes(2);
    while (h.now < end) {
      while (h.core.num_queued() < options.max_queued_requests) h.Submit();
      h.AdvanceAlive(per_request);
      const AttemptKey key = h.Take<SendRun>().at(0).sequence.key;
      h.PlayToken(b, key, 0, 1);
      h.PlayEnd(b, key, AttemptEndReason::kLength);
    }
    h.Submit();
    const RequestId refused = h.Submit();
    EXPECT_TRUE(h.HasEnded(refused));
    return absl::ToDoubleSeconds(h.Result(refused).retry_after.value());
  };
  EXPECT_NEAR(retry_after(absl::Seconds(1)), 20, 3);
  EXPECT_NEAR(retry_after(absl::Milliseconds(200)), 4, 1);
  EXPECT_EQ(retry_after(absl::Milliseconds(20)), 1);
  EXPECT_EQ(retry_after(absl::Seconds(5)), 30);
}

TEST_F(RequestAdmissionTest, QueueIsBoundedAndFirstComeFirstServed) {
  CoreOptions options;
  options.max_running_requests = 1;
  options.max_queued_requests = 2;
  CoreHarness h(options);
  const SessionId b = h.Join("b", WorkerRole::kBoth);
  const RequestId first = h.Submit(), second = h.Submit(), third = h.Submit();
  EXPECT_EQ(h.core.num_running(), 1);
  EXPECT_EQ(h.core.num_queued(), 2);
  const RequestId refused = h.Submit();
  EXPECT_EQ(h.Result(refused).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(h.Result(refused).status.message()), HasSubstr("queue full"));
  EXPECT_EQ(h.Result(refused).retry_after, AdmissionRate::kMaxWait);  // of one admission so far
  EXPECT_EQ(h.ends.at(refused)[0].reject, RejectReason::kQueueFull);

  EXPECT_EQ(h.Take<SendRun>().at(0).sequence.key.request, first);
  h.now += absl::Seconds(1);
  h.PlayToken(b, {first, Attempt(1)}, 0, 1);
  h.PlayEnd(b, {first, Attempt(1)}, AttemptEndReason::kLength);
  EXPECT_EQ(h.Take<SendRun>().at(0).sequence.key.request, second);
  // A queued request that is cancelled gives its place up.
  h.Play(RequestCancelled{third});
  EXPECT_EQ(h.Result(third).end, GenerationEnd::kCancelled);
  EXPECT_EQ(h.core.num_queued(), 0);
  h.PlayToken(b, {second, Attempt(1)}, 0, 1);
  h.PlayEnd(b, {second, Attempt(1)}, AttemptEndReason::kLength);
  EXPECT_EQ(h.Result(second).stages.at("admission"), absl::Seconds(1));
}

TEST_F(RequestAdmissionTest, QueueTimeoutRefuses) {
  CoreOptions options;
  options.max_running_requests = 1;
  options.queue_timeout = absl::Seconds(3);
  CoreHarness h(options);
  h.Join("b", WorkerRole::kBoth);
  h.Submit();
  const RequestId waiting = h.Submit();
  h.AdvanceAlive(absl::Milliseconds(2900));
  EXPECT_FALSE(h.HasEnded(waiting));
  h.AdvanceAlive(absl::Milliseconds(200));
  EXPECT_EQ(h.Result(waiting).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h.ends.at(waiting)[0].reject, RejectReason::kQueueTimeout);
  EXPECT_EQ(h.core.num_queued(), 0);
}

TEST_F(RequestAdmissionTest, DrainingRefusesNewAndFinishesOld) {
  JoinPair();
  const RequestId old = h_.Submit();
  h_.Play(DrainStarted{});
  const RequestId late = h_.Submit();
  EXPECT_EQ(h_.Result(late).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(h_.ends.at(late)[0].reject, RejectReason::kDraining);
  EXPECT_EQ(h_.core.NotReadyReason(h_.now), "draining");
  const AttemptKey key = StartPrefill(old);
  h_.PlayToken(p_, key, 0, 1);
  h_.PlayEnd(d_, key, AttemptEndReason::kStop);
  EXPECT_EQ(h_.Result(old).end, GenerationEnd::kStop);
}

TEST_F(RequestAdmissionTest, BusyGoesToAnotherWorkerThenWaits) {
  JoinPair();
  const SessionId d2 = h_.Join("d2", WorkerRole::kDecode);
  const RequestId id = h_.Submit();
  SendReserve reserve = h_.Take<SendReserve>().at(0);
  EXPECT_EQ(reserve.to, d_);
  h_.Play(AnsweredBusy{d_, reserve.sequence.key, "full", absl::Milliseconds(50)});
  reserve = h_.Take<SendReserve>().at(0);
  EXPECT_EQ(reserve.to, d2);
  h_.Play(AnsweredBusy{d2, reserve.sequence.key, "full", absl::Milliseconds(10)});
  EXPECT_TRUE(h_.Take<SendReserve>().empty());
  EXPECT_EQ(h_.core.NextTimer(h_.now), h_.now + absl::Milliseconds(50));
  h_.Advance(absl::Milliseconds(49));
  EXPECT_TRUE(h_.Take<SendReserve>().empty());
  h_.Advance(absl::Milliseconds(1));
  reserve = h_.Take<SendReserve>().at(0);
  h_.PlayGrant(reserve.to, reserve.sequence.key);
  EXPECT_EQ(h_.Take<SendPrefill>().size(), 1u);
  EXPECT_FALSE(h_.HasEnded(id));
}

TEST_F(RequestAdmissionTest, BusyForTooLongIsResourceExhausted) {
  JoinPair();
  const RequestId id = h_.Submit();
  int reserves = 0;
  for (int i = 0; i < 1000 && !h_.HasEnded(id); ++i) {
    for (const SendReserve& reserve : h_.Take<SendReserve>()) {
      ++reserves;
      h_.Play(AnsweredBusy{d_, reserve.sequence.key, "full", absl::ZeroDuration()});
    }
    h_.AdvanceAlive(absl::Milliseconds(200));
  }
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h_.ends.at(id)[0].reject, RejectReason::kKvExhausted);
  EXPECT_LT(reserves, 60);  // pauses grow
  EXPECT_GT(reserves, 25);  // up to a second
  ExpectNothingLeft();
}

}  // namespace
}  // namespace sluice::router
