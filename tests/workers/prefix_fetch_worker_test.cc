// Prefill workers that take the beginning of a prompt from the decode worker instead of computing
// it: whole workers, in one process, with their threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "services/decode_worker/held_reserves.h"
#include "tests/workers/worker_cluster.h"

namespace sluice::testing {
namespace {

using v1::RequestEnded;

// Prompt tokens that the worker has computed.
double Computed(WorkerCluster& cluster, const std::string& id) {
  return cluster.Metric(id, "sluice_engine_step_tokens_sum", "phase=\"prefill\"");
}
double Fetched(WorkerCluster& cluster, const std::string& id) {
  return cluster.Metric(id, "sluice_kv_prefix_fetched_tokens_total");
}

// As the worker that computed the first token said it.
int CachedTokens(WorkerCluster& cluster, const rpc::SequenceAttempt& sequence) {
  for (const auto& heard : cluster.router().heard()) {
    for (const auto& token : heard.message.tokens().tokens()) {
      if (token.request_id() == sequence.request.ToWire() &&
          token.attempt() == sequence.attempt.value && token.index() == 0) {
        return token.cached_tokens();
      }
    }
  }
  return -1;
}

// After this the decode worker has the first 448 tokens of `sequence`'s prompt, and "p" nothing.
void GiveToDecodeWorkerOnly(WorkerCluster& cluster, const rpc::SequenceAttempt& sequence) {
  cluster.Add("dying", "prefill");
  cluster.Add("d", "decode");
  auto first = WorkerCluster::MakeSequence(99, 460, 2);
  std::copy(sequence.tokens.begin(), sequence.tokens.begin() + 460, first.tokens.begin());
  cluster.RunDisaggregated("dying", "d", first);
  cluster.Kill("dying");
  cluster.Add("p", "prefill");
}

TEST(PrefixFetchWorker, ComputesOnlyWhatTheDecodeWorkerLacks) {
  WorkerCluster cluster;
  const auto sequence = WorkerCluster::MakeSequence(1, 600, 12);
  GiveToDecodeWorkerOnly(cluster, sequence);
  cluster.RunDisaggregated("p", "d", sequence);
  EXPECT_EQ(cluster.Tokens(sequence), WorkerCluster::Ids(cluster.Oracle(sequence)));
  EXPECT_EQ(cluster.WaitForGrant("d", sequence).cached_tokens(), 448);
  EXPECT_EQ(Fetched(cluster, "p"), 448);
  EXPECT_EQ(Computed(cluster, "p"), 600 - 448);
  EXPECT_EQ(CachedTokens(cluster, sequence), 448);
  EXPECT_EQ(cluster.Metric("p", "sluice_kv_prefix_fetches_total", "result=\"ok\""), 1);
  cluster.ExpectAllFreed("p");
  cluster.ExpectAllFreed("d");
  // What was fetched is cached here too: the same beginning is not fetched again.
  auto again = WorkerCluster::MakeSequence(2, 600, 4);
  std::copy(sequence.tokens.begin(), sequence.tokens.begin() + 500, again.tokens.begin());
  cluster.RunDisaggregated("p", "d", again);
  EXPECT_EQ(cluster.Tokens(again), WorkerCluster::Ids(cluster.Oracle(again)));
  EXPECT_EQ(Fetched(cluster, "p"), 448);
}

TEST(PrefixFetchWorker, TheNextTurnOfAChatBringsTheAnswerBack) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  const auto turn = WorkerCluster::MakeSequence(1, 200, 200);
  cluster.RunDisaggregated("p", "d", turn);
  const std::vector<TokenId> answer = cluster.Tokens(turn);
  ASSERT_EQ(answer, WorkerCluster::Ids(cluster.Oracle(turn)));
  ASSERT_EQ(answer.size(), 200U);
  auto next = WorkerCluster::MakeSequence(2, 450, 10);
  std::copy(turn.tokens.begin(), turn.tokens.end(), next.tokens.begin());
  std::copy(answer.begin(), answer.end(), next.tokens.begin() + 200);
  const double computed_before = Computed(cluster, "p");
  cluster.RunDisaggregated("p", "d", next);
  EXPECT_EQ(cluster.Tokens(next), WorkerCluster::Ids(cluster.Oracle(next)));
  // 399 tokens of the first turn have KV, in six full blocks; three of them are of the prompt.
  EXPECT_EQ(cluster.WaitForGrant("d", next).cached_tokens(), 384);
  EXPECT_EQ(Fetched(cluster, "p"), 384 - 192);
  EXPECT_EQ(CachedTokens(cluster, next), 384);
  EXPECT_EQ(Computed(cluster, "p") - computed_before, 450 - 384);
  cluster.ExpectAllFreed("p");
  cluster.ExpectAllFreed("d");
}

TEST(PrefixFetchWorker, WithoutPatienceNothingIsFetched) {
  ClusterOptions options;
  options.transfer.fetch_patience = absl::ZeroDuration();
  WorkerCluster cluster(options);
  const auto sequence = WorkerCluster::MakeSequence(1, 600, 4);
  GiveToDecodeWorkerOnly(cluster, sequence);
  cluster.RunDisaggregated("p", "d", sequence);
  EXPECT_EQ(cluster.Tokens(sequence), WorkerCluster::Ids(cluster.Oracle(sequence)));
  EXPECT_EQ(Fetched(cluster, "p"), 0);
  EXPECT_EQ(Computed(cluster, "p"), 600);
}

TEST(PrefixFetchWorker, CancelDuringAFetchFreesBothSides) {
  WorkerCluster cluster;
  const auto sequence = WorkerCluster::MakeSequence(1, 600, 4);
  GiveToDecodeWorkerOnly(cluster, sequence);
  cluster.hub().HoldReceives(true);
  cluster.SendReserve("d", sequence);
  cluster.SendPrefill("p", "d", sequence, cluster.WaitForGrant("d", sequence));
  ASSERT_TRUE(Eventually([&] { return cluster.hub().num_held_receives() > 0; }));
  cluster.SendCancel("p", sequence);
  EXPECT_EQ(cluster.WaitForEnd("p", sequence).reason(), RequestEnded::REASON_CANCELLED);
  cluster.WaitForEnd("d", sequence);  // its peer has told it
  // The network may still write here and read there.
  EXPECT_TRUE(Eventually([&] {
    return cluster.Metric("p", "sluice_kv_blocks", "state=\"quarantined\"") == 7 &&
           cluster.Metric("d", "sluice_kv_blocks", "state=\"sending\"") == 7;
  }));
  // Neither request is here any more, and neither worker takes that for a leak.
  for (const auto& [id, state] : {std::pair("p", "quarantined"), std::pair("d", "lent")}) {
    nlohmann::json holders;
    EXPECT_TRUE(Eventually([&, id = id, state = state] {
      holders = nlohmann::json::parse(cluster.worker(id).BlocksJson())["holders"];
      return holders.size() == 1 && holders[0]["state"] == state;
    }));
    ASSERT_EQ(holders.size(), 1U) << id;
    EXPECT_EQ(holders[0]["request_id"], sequence.request.ToString());
    EXPECT_EQ(holders[0]["blocks"], 7);
    EXPECT_EQ(holders[0]["known_request"], true) << id;
    EXPECT_EQ(holders[0]["ending"], true) << id;
    EXPECT_GE(holders[0]["held_seconds"], 0.0) << id;
    EXPECT_GT(holders[0]["lease_seconds"], 0.0) << id;
  }
  cluster.hub().HoldReceives(false);
  cluster.ExpectAllFreed("p");
  cluster.ExpectAllFreed("d");
}

TEST(PrefixFetchWorker, DecodeWorkerLostDuringAFetch) {
  WorkerCluster cluster;
  const auto sequence = WorkerCluster::MakeSequence(1, 600, 4);
  GiveToDecodeWorkerOnly(cluster, sequence);
  cluster.hub().HoldReceives(true);
  cluster.SendReserve("d", sequence);
  cluster.SendPrefill("p", "d", sequence, cluster.WaitForGrant("d", sequence));
  ASSERT_TRUE(Eventually([&] { return cluster.hub().num_held_receives() > 0; }));
  cluster.Kill("d");
  const RequestEnded ended = cluster.WaitForEnd("p", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.stage(), "kv_transfer");
  cluster.ExpectAllFreed("p");
}

TEST(PrefixFetchWorker, ANewAttemptDoesNotWaitForReceivesThatHang) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  cluster.hub().HoldReceives(true);
  const auto first = WorkerCluster::MakeSequence(1, 500, 4);
  cluster.SendReserve("d", first);
  cluster.SendPrefill("p", "d", first, cluster.WaitForGrant("d", first));
  ASSERT_TRUE(Eventually([&] { return cluster.hub().num_held_receives() > 0; }));
  auto second = first;
  second.attempt = Attempt(2);
  cluster.SendReserve("d", second);
  const v1::Grant grant = cluster.WaitForGrant("d", second);
  EXPECT_GT(cluster.hub().num_held_receives(), 0);
  cluster.hub().HoldReceives(false);
  EXPECT_EQ(cluster.WaitForEnd("d", first).reason(), RequestEnded::REASON_CANCELLED);
  cluster.SendPrefill("p", "d", second, grant);
  EXPECT_EQ(cluster.WaitForEnd("p", second).reason(), RequestEnded::REASON_HANDED_OVER);
  EXPECT_EQ(cluster.WaitForEnd("d", second).reason(), RequestEnded::REASON_LENGTH);
  EXPECT_EQ(cluster.Tokens(second), WorkerCluster::Ids(cluster.Oracle(second)));
  cluster.ExpectAllFreed("p");
  cluster.ExpectAllFreed("d");
}

TEST(PrefixFetchWorker, CancelRightBehindANewAttempt) {
  WorkerCluster cluster;
  cluster.Add("d", "decode");
  for (uint64_t request = 1; request <= 20; ++request) {
    const auto first = WorkerCluster::MakeSequence(request, 100, 4);
    auto second = first;
    second.attempt = Attempt(2);
    cluster.SendReserve("d", first);
    cluster.SendReserve("d", second);  // held, if the transfer thread is not faster
    cluster.SendCancel("d", second);
    EXPECT_EQ(cluster.WaitForEnd("d", first).reason(), RequestEnded::REASON_CANCELLED);
    EXPECT_EQ(cluster.WaitForEnd("d", second).reason(), RequestEnded::REASON_CANCELLED);
  }
  cluster.ExpectAllFreed("d");
}

TEST(HeldReserves, TheNewestAttemptOfARequestWaits) {
  const absl::Time now = absl::UnixEpoch();
  worker::HeldReserves held;
  EXPECT_EQ(held.NextDeadline(), absl::InfiniteFuture());
  const auto first = WorkerCluster::MakeSequence(1, 10, 1, /*attempt=*/1);
  const auto second = WorkerCluster::MakeSequence(1, 10, 1, /*attempt=*/2);
  const auto other = WorkerCluster::MakeSequence(2, 10, 1);
  held.Hold({rpc::SessionId(1), first, now, now + absl::Seconds(1)});
  held.Hold({rpc::SessionId(1), second, now, now + absl::Seconds(2)});
  held.Hold({rpc::SessionId(7), other, now, now + absl::Seconds(3)});
  ASSERT_NE(held.Find(first.request), nullptr);
  EXPECT_EQ(held.Find(first.request)->sequence.attempt, second.attempt);
  EXPECT_EQ(held.NextDeadline(), now + absl::Seconds(2));
  EXPECT_TRUE(held.Due(now + absl::Seconds(1)).empty());
  EXPECT_EQ(held.Due(now + absl::Seconds(2)), std::vector<RequestId>{first.request});
  EXPECT_EQ(held.Take(first.request).sequence.attempt, second.attempt);
  EXPECT_EQ(held.Find(first.request), nullptr);
  held.DropSession(rpc::SessionId(7));
  EXPECT_EQ(held.Find(other.request), nullptr);
}

}  // namespace
}  // namespace sluice::testing
