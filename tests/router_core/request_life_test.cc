// A request's life when nothing breaks: routing, handoff, tokens, cancel, deadlines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/router_core/request_fixture.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RequestLifeTest : public RequestTest {};

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
