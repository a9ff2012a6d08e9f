// A request's life when nothing breaks: admission, routing, handoff, tokens, cancel, deadlines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/router_core/core_harness.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RequestLifeTest : public ::testing::Test {
 protected:
  void JoinPair() {
    p_ = h_.Join("p", WorkerRole::kPrefill);
    d_ = h_.Join("d", WorkerRole::kDecode);
    h_.sent.clear();
  }
  // Up to and with Prefill.
  AttemptKey StartPrefill(RequestId id) {
    const AttemptKey key = h_.Take<SendReserve>().at(0).sequence.key;
    EXPECT_EQ(key.request, id);
    h_.PlayGrant(d_, key);
    EXPECT_EQ(h_.Take<SendPrefill>().at(0).sequence.key, key);
    return key;
  }
  void ExpectNothingLeft() {
    EXPECT_EQ(h_.core.num_running(), 0);
    EXPECT_EQ(h_.core.num_queued(), 0);
    for (const auto& [session, member] : h_.core.membership().members()) {
      EXPECT_EQ(member.assigned_requests, 0) << member.info.worker_id;
      EXPECT_EQ(member.assigned_prefill_tokens, 0) << member.info.worker_id;
    }
    for (const auto& [id, ends] : h_.ends) EXPECT_EQ(ends.size(), 1u);
  }

  CoreHarness h_;
  SessionId p_, d_;
};

TEST_F(RequestLifeTest, DisaggregatedFromSubmitToEnd) {
  JoinPair();
  GenerationSpec spec = h_.Spec(10, 100);
  spec.tenant_salt = "salt";
  spec.sampling.seed = 42;
  spec.deadline = h_.now + absl::Seconds(60);
  const RequestId id = h_.Submit(spec);

  const SendReserve reserve = h_.Take<SendReserve>().at(0);
  EXPECT_EQ(reserve.to, d_);
  EXPECT_EQ(reserve.sequence.key, (AttemptKey{id, Attempt(1)}));
  EXPECT_EQ(reserve.sequence.tokens, spec.prompt);
  EXPECT_EQ(reserve.sequence.num_output_tokens, 0);
  EXPECT_EQ(reserve.sequence.tenant_salt, "salt");
  EXPECT_EQ(reserve.sequence.sampling.seed, 42u);
  EXPECT_EQ(reserve.sequence.time_left, absl::Seconds(60));

  h_.now += absl::Milliseconds(10);
  const AttemptKey key = reserve.sequence.key;
  h_.PlayGrant(d_, key);
  const SendPrefill prefill = h_.Take<SendPrefill>().at(0);
  EXPECT_EQ(prefill.to, p_);
  EXPECT_EQ(prefill.sequence.tokens, spec.prompt);
  EXPECT_EQ(prefill.grant.transfer_id.bytes[0], 7);
  EXPECT_EQ(prefill.decode_kv_address, "address of d");
  EXPECT_EQ(prefill.decode_worker_id, "d");
  EXPECT_EQ(prefill.fingerprint, "fp");
  EXPECT_EQ(prefill.sequence.time_left, absl::Seconds(60) - absl::Milliseconds(10));

  h_.now += absl::Milliseconds(50);
  ProducedToken first;
  first.key = key;
  first.token.token = 500;
  first.queue_time = absl::Milliseconds(5);
  first.compute_time = absl::Milliseconds(40);
  first.cached_tokens = 6;
  h_.Play(TokensProduced{p_, {first}});
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(500));
  h_.PlayKv(d_, key);
  h_.PlayEnd(p_, key, AttemptEndReason::kHandedOver);
  h_.now += absl::Milliseconds(7);
  ProducedToken second;
  second.key = key;
  second.index = 1;
  second.token.token = 501;
  second.compute_time = absl::Milliseconds(2);
  h_.Play(TokensProduced{d_, {second}});
  h_.PlayToken(d_, key, 2, 502);
  EXPECT_FALSE(h_.HasEnded(id));
  h_.PlayEnd(d_, key, AttemptEndReason::kStop);

  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(500, 501, 502));
  const GenerationResult& result = h_.Result(id);
  EXPECT_EQ(result.end, GenerationEnd::kStop);
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.cached_tokens, 6);
  EXPECT_EQ(result.stages.at("admission"), absl::ZeroDuration());
  EXPECT_EQ(result.stages.at("route"), absl::Milliseconds(10));
  EXPECT_EQ(result.stages.at("prefill"), absl::Milliseconds(40));
  EXPECT_EQ(result.stages.at("prefill_queue"), absl::Milliseconds(10));
  EXPECT_EQ(result.stages.at("kv_transfer"), absl::Milliseconds(3));
  EXPECT_EQ(result.stages.at("decode_queue"), absl::Milliseconds(2));
  EXPECT_EQ(result.stages.at("first_step"), absl::Milliseconds(2));
  EXPECT_TRUE(h_.Take<SendCancel>().empty());
  ExpectNothingLeft();
}

TEST_F(RequestLifeTest, TheGrantsAddressIsNewerThanTheRegisteredOne) {
  JoinPair();
  h_.Submit(10, 100);
  Granted granted{d_, h_.Take<SendReserve>().at(0).sequence.key, {}};
  granted.grant.kv_address = "address of d since it started anew";
  h_.Play(granted);
  EXPECT_EQ(h_.Take<SendPrefill>().at(0).decode_kv_address, granted.grant.kv_address);
}

TEST_F(RequestLifeTest, ColocatedRunsWithoutHandoff) {
  const SessionId b = h_.Join("b", WorkerRole::kBoth);
  const RequestId id = h_.Submit(10, 2);
  EXPECT_TRUE(h_.Take<SendReserve>().empty());
  const SendRun run = h_.Take<SendRun>().at(0);
  EXPECT_EQ(run.to, b);
  h_.PlayToken(b, run.sequence.key, 0, 7);
  h_.PlayToken(b, run.sequence.key, 1, 8);
  h_.PlayEnd(b, run.sequence.key, AttemptEndReason::kLength);
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(7, 8));
  EXPECT_EQ(h_.Result(id).end, GenerationEnd::kLength);
  ExpectNothingLeft();
}

TEST_F(RequestLifeTest, NoWorkerIsUnavailableAtOnce) {
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
TEST_F(RequestLifeTest, ANewRequestWaitsForAWorkerThatWasThereAMomentAgo) {
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
TEST_F(RequestLifeTest, NewRequestsDoNotOvertakeOneThatStarves) {
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

TEST_F(RequestLifeTest, RefusesEmptyPromptsAndTooLongOnes) {
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
TEST_F(RequestLifeTest, RetryAfterFollowsTheQueueAndItsRate) {
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

TEST_F(RequestLifeTest, QueueIsBoundedAndFirstComeFirstServed) {
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

TEST_F(RequestLifeTest, QueueTimeoutRefuses) {
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

TEST_F(RequestLifeTest, DrainingRefusesNewAndFinishesOld) {
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

TEST_F(RequestLifeTest, BusyGoesToAnotherWorkerThenWaits) {
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

TEST_F(RequestLifeTest, BusyForTooLongIsResourceExhausted) {
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

TEST_F(RequestLifeTest, TokensAheadOfTheFirstAreHeld) {
  JoinPair();
  const RequestId id = h_.Submit();
  const AttemptKey key = StartPrefill(id);
  h_.PlayKv(d_, key);
  h_.PlayToken(d_, key, 1, 11);
  h_.PlayToken(d_, key, 2, 12);
  h_.PlayEnd(d_, key, AttemptEndReason::kStop);
  EXPECT_TRUE(h_.emitted_tokens[id].empty());
  EXPECT_FALSE(h_.HasEnded(id));
  h_.PlayToken(p_, key, 0, 10);
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(10, 11, 12));
  EXPECT_EQ(h_.Result(id).end, GenerationEnd::kStop);
  h_.PlayEnd(p_, key, AttemptEndReason::kHandedOver);
  ExpectNothingLeft();
}

TEST_F(RequestLifeTest, AnswerOfOneTokenMayEndBeforeItArrives) {
  JoinPair();
  const RequestId id = h_.Submit(10, 1);
  const AttemptKey key = StartPrefill(id);
  h_.PlayKv(d_, key);
  h_.PlayEnd(d_, key, AttemptEndReason::kLength);
  EXPECT_FALSE(h_.HasEnded(id));
  h_.PlayToken(p_, key, 0, 10);
  EXPECT_EQ(h_.Result(id).end, GenerationEnd::kLength);
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(10));
  ExpectNothingLeft();
}

TEST_F(RequestLifeTest, PrefillWorkerMayEndTheAnswerItself) {
  JoinPair();
  const RequestId id = h_.Submit(10, 1);
  const AttemptKey key = StartPrefill(id);
  h_.PlayToken(p_, key, 0, 10);
  h_.PlayEnd(p_, key, AttemptEndReason::kStop);
  EXPECT_EQ(h_.Result(id).end, GenerationEnd::kStop);
  const std::vector<SendCancel> cancels = h_.Take<SendCancel>();
  ASSERT_EQ(cancels.size(), 1u);
  EXPECT_EQ(cancels[0].to, d_);  // its reservation is of no use
  ExpectNothingLeft();
}

TEST_F(RequestLifeTest, PrefillWorkerMaySayFirstThatTheHandoffIsDone) {
  JoinPair();
  const RequestId id = h_.Submit();
  const AttemptKey key = StartPrefill(id);
  h_.PlayToken(p_, key, 0, 10);
  h_.PlayEnd(p_, key, AttemptEndReason::kHandedOver);
  h_.PlayKv(d_, key);
  h_.PlayToken(d_, key, 1, 11);
  h_.PlayEnd(d_, key, AttemptEndReason::kStop);
  EXPECT_EQ(h_.Result(id).end, GenerationEnd::kStop);
  EXPECT_TRUE(h_.Result(id).stages.contains("kv_transfer"));
  EXPECT_TRUE(h_.Result(id).stages.contains("first_step"));
  for (const uint64_t stale : h_.core.counters().stale_messages) EXPECT_EQ(stale, 0u);
}

TEST_F(RequestLifeTest, DuplicateAndForeignTokensAreDropped) {
  JoinPair();
  const SessionId d2 = h_.Join("d2", WorkerRole::kDecode);
  const RequestId id = h_.Submit();
  const AttemptKey key = StartPrefill(id);
  h_.PlayToken(p_, key, 0, 10);
  h_.PlayToken(p_, key, 0, 99);
  EXPECT_EQ(h_.Stale(StaleReason::kDuplicateToken), 1u);
  h_.PlayToken(d2, key, 1, 99);
  EXPECT_EQ(h_.Stale(StaleReason::kWrongWorker), 1u);
  h_.PlayToken(d_, {id, Attempt(9)}, 1, 99);
  EXPECT_EQ(h_.Stale(StaleReason::kStaleAttempt), 1u);
  RequestId unknown;
  unknown.bytes[15] = 1;
  h_.PlayToken(d_, {unknown, Attempt(1)}, 0, 99);
  EXPECT_EQ(h_.Stale(StaleReason::kUnknownRequest), 1u);
  h_.PlayToken(SessionId(99), key, 1, 99);
  EXPECT_EQ(h_.Stale(StaleReason::kUnknownSession), 1u);
  h_.PlayToken(d_, key, 1, 11);
  EXPECT_THAT(h_.emitted_tokens[id], ElementsAre(10, 11));
}

TEST_F(RequestLifeTest, GrantForAnEndedRequestIsCancelled) {
  JoinPair();
  const RequestId id = h_.Submit();
  const AttemptKey key = h_.Take<SendReserve>().at(0).sequence.key;
  h_.Play(RequestCancelled{id});
  EXPECT_EQ(h_.Take<SendCancel>().size(), 1u);
  h_.PlayGrant(d_, key);
  ASSERT_EQ(h_.Take<SendCancel>().size(), 1u);
  EXPECT_TRUE(h_.Take<SendPrefill>().empty());
}

enum Upto { kReserve, kPrefill, kFirstToken, kKv, kHandedOver, kDecoding };

TEST_F(RequestLifeTest, StopStringOfTheFrontEndsWell) {
  JoinPair();
  const RequestId id = h_.Submit();
  const AttemptKey key = StartPrefill(id);
  h_.PlayToken(p_, key, 0, 10);
  h_.Play(RequestCancelled{.id = id, .satisfied = true});
  EXPECT_EQ(h_.Result(id).end, GenerationEnd::kStop);
  EXPECT_EQ(h_.Take<SendCancel>().size(), 2u);  // the workers are told all the same
  ExpectNothingLeft();
}

class CancelTest : public RequestLifeTest, public ::testing::WithParamInterface<Upto> {};

TEST_P(CancelTest, ReachesEveryWorkerInvolved) {
  const Upto upto = GetParam();
  JoinPair();
  const RequestId id = h_.Submit();
  AttemptKey key{id, Attempt(1)};
  if (upto >= kPrefill) key = StartPrefill(id);
  if (upto >= kFirstToken) h_.PlayToken(p_, key, 0, 10);
  if (upto >= kKv) h_.PlayKv(d_, key);
  if (upto >= kHandedOver) h_.PlayEnd(p_, key, AttemptEndReason::kHandedOver);
  if (upto >= kDecoding) h_.PlayToken(d_, key, 1, 11);
  h_.Play(RequestCancelled{id});
  EXPECT_EQ(h_.Result(id).end, GenerationEnd::kCancelled);
  std::vector<SessionId> told;
  for (const SendCancel& cancel : h_.Take<SendCancel>()) {
    EXPECT_EQ(cancel.key, key);
    told.push_back(cancel.to);
  }
  const bool prefill_involved = upto >= kPrefill && upto < kHandedOver;
  EXPECT_EQ(told,
            prefill_involved ? (std::vector<SessionId>{p_, d_}) : (std::vector<SessionId>{d_}));
  h_.Play(RequestCancelled{id});  // again: nothing
  EXPECT_EQ(h_.ends[id].size(), 1u);
  ExpectNothingLeft();
  // The acknowledgements are no stale messages.
  h_.PlayEnd(d_, key, AttemptEndReason::kCancelled);
  h_.PlayEnd(p_, key, AttemptEndReason::kCancelled);
  for (const uint64_t stale : h_.core.counters().stale_messages) EXPECT_EQ(stale, 0u);
}

INSTANTIATE_TEST_SUITE_P(EachStage, CancelTest,
                         ::testing::Values(kReserve, kPrefill, kFirstToken, kKv, kHandedOver,
                                           kDecoding));

TEST_F(RequestLifeTest, DeadlineEndsTheRequestAndNamesTheStage) {
  JoinPair();
  GenerationSpec spec = h_.Spec(10, 100);
  spec.deadline = h_.now + absl::Seconds(2);
  const RequestId id = h_.Submit(spec);
  const AttemptKey key = StartPrefill(id);
  h_.PlayToken(p_, key, 0, 10);
  h_.AdvanceAlive(absl::Milliseconds(1999));
  EXPECT_FALSE(h_.HasEnded(id));
  h_.AdvanceAlive(absl::Milliseconds(1));
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(h_.Result(id).status.message()),
              HasSubstr("worker d (stage kv_transfer, 1 tokens sent)"));
  EXPECT_EQ(h_.Take<SendCancel>().size(), 2u);
  ExpectNothingLeft();
}

TEST_F(RequestLifeTest, RequestTimeoutIsTheDeadlineOfThoseWithoutOne) {
  JoinPair();
  const RequestId id = h_.Submit();
  EXPECT_EQ(h_.Take<SendReserve>().at(0).sequence.time_left, CoreOptions().request_timeout);
  StartPrefill(h_.Submit());
  h_.now += CoreOptions().request_timeout;
  h_.Play(RouterResumed{});
  h_.Play(Tick{});
  EXPECT_EQ(h_.Result(id).status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(RequestLifeTest, RoutesToThePrefillWorkerThatHasThePrefix) {
  JoinPair();
  const SessionId p2 = h_.Join("p2", WorkerRole::kPrefill);
  h_.sent.clear();
  GenerationSpec spec = h_.Spec(200, 10);
  WorkerLoad load = CoreHarness::ReadyLoad();
  load.kv_blocks_added = BlockHashChain(RootBlockHash("fp", ""), spec.prompt);
  ASSERT_EQ(load.kv_blocks_added.size(), 3u);
  h_.Play(LoadReported{p2, load});
  h_.Submit(spec);
  h_.PlayGrant(d_, h_.Take<SendReserve>().at(0).sequence.key);
  EXPECT_EQ(h_.Take<SendPrefill>().at(0).to, p2);
  // Another tenant's cache is not its own.
  GenerationSpec other = h_.Spec(200, 10);
  other.tenant_salt = "other";
  h_.Submit(other);
  h_.PlayGrant(d_, h_.Take<SendReserve>().at(0).sequence.key);
  EXPECT_EQ(h_.Take<SendPrefill>().at(0).to, p_);
}

TEST_F(RequestLifeTest, SpreadsPrefillsBeforeTheWorkersReport) {
  JoinPair();
  const SessionId p2 = h_.Join("p2", WorkerRole::kPrefill);
  h_.sent.clear();
  std::vector<SessionId> chosen;
  for (int i = 0; i < 4; ++i) {
    h_.Submit();
    h_.PlayGrant(d_, h_.Take<SendReserve>().at(0).sequence.key);
    chosen.push_back(h_.Take<SendPrefill>().at(0).to);
  }
  EXPECT_THAT(chosen, ElementsAre(p_, p2, p_, p2));
}

TEST_F(RequestLifeTest, SnapshotCountsAndPhases) {
  JoinPair();
  const RequestId id = h_.Submit();
  EXPECT_EQ(h_.core.CountPhases()[static_cast<int>(RequestFlow::Phase::kReserving)], 1);
  const AttemptKey key = StartPrefill(id);
  EXPECT_EQ(h_.core.CountPhases()[static_cast<int>(RequestFlow::Phase::kPrefill)], 1);
  h_.PlayToken(p_, key, 0, 10);
  EXPECT_EQ(h_.core.CountPhases()[static_cast<int>(RequestFlow::Phase::kTransfer)], 1);
  h_.PlayKv(d_, key);
  EXPECT_EQ(h_.core.CountPhases()[static_cast<int>(RequestFlow::Phase::kDecodeQueue)], 1);
  h_.PlayToken(d_, key, 1, 11);
  EXPECT_EQ(h_.core.CountPhases()[static_cast<int>(RequestFlow::Phase::kDecode)], 1);
  const ClusterSnapshot snapshot = h_.core.Snapshot(h_.now);
  EXPECT_EQ(snapshot.requests_running, 1);
  ASSERT_EQ(snapshot.workers.size(), 2u);
  EXPECT_EQ(snapshot.workers[0].worker_id, "d");
  EXPECT_EQ(snapshot.workers[0].role, "decode");
  EXPECT_EQ(snapshot.workers[0].blocks_free, 100);
}

}  // namespace
}  // namespace sluice::router
