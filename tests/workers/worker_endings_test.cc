// How requests end that do not run to their end: cancelled, past a deadline, without their router
// or peer, or with the worker; and what is known of a worker that hangs.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/support/fake_model.h"
#include "tests/workers/worker_cluster.h"

namespace sluice::testing {
namespace {

using v1::RequestEnded;

TEST(WorkerEndings, CancelOfAReservation) {
  WorkerCluster cluster;
  cluster.Add("d", "decode");
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 4);
  cluster.SendReserve("d", sequence);
  cluster.WaitForGrant("d", sequence);
  cluster.SendCancel("d", sequence);
  EXPECT_EQ(cluster.WaitForEnd("d", sequence).reason(), RequestEnded::REASON_CANCELLED);
  cluster.ExpectAllFreed("d");
}

TEST(WorkerEndings, CancelRightBehindReserve) {
  WorkerCluster cluster;
  cluster.Add("d", "decode");
  for (uint64_t request = 1; request <= 20; ++request) {
    const auto sequence = WorkerCluster::MakeSequence(request, 100, 4);
    cluster.SendReserve("d", sequence);
    cluster.SendCancel("d", sequence);
    EXPECT_EQ(cluster.WaitForEnd("d", sequence).reason(), RequestEnded::REASON_CANCELLED);
  }
  cluster.ExpectAllFreed("d");
}

TEST(WorkerEndings, CancelInTheMiddleOfATransferFreesBothSides) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  cluster.hub().HoldReceives(true);
  const auto sequence = WorkerCluster::MakeSequence(1, 500, 4);
  cluster.SendReserve("d", sequence);
  cluster.SendPrefill("p", "d", sequence, cluster.WaitForGrant("d", sequence));
  for (int i = 0; i < 2000 && cluster.hub().num_held_receives() == 0; ++i) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  ASSERT_GT(cluster.hub().num_held_receives(), 0);
  // As `sluice status --blocks` shows it.
  const auto blocks = [&](const std::string& id) {
    return nlohmann::json::parse(cluster.worker(id).BlocksJson());
  };
  EXPECT_TRUE(Eventually([&] { return blocks("d")["blocks"]["receiving"] == 8; }));
  EXPECT_TRUE(Eventually([&] { return blocks("p")["num_holders"] == 1; }));
  const nlohmann::json holder = blocks("d")["holders"].at(0);
  EXPECT_EQ(holder["request_id"], sequence.request.ToString());
  EXPECT_EQ(holder["attempt"], sequence.attempt.value);
  EXPECT_EQ(holder["blocks"], 8);
  EXPECT_EQ(holder["state"], "receiving");
  EXPECT_EQ(holder["known_request"], true);
  EXPECT_EQ(holder["ending"], false);
  EXPECT_GE(holder["held_seconds"], 0.0);
  EXPECT_GT(holder["lease_seconds"], 0.0);

  cluster.SendCancel("d", sequence);
  cluster.SendCancel("p", sequence);
  // The network may still write: the blocks must not be free yet.
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_EQ(cluster.worker("d").num_requests(), 1);
  EXPECT_GT(cluster.Metric("d", "sluice_kv_blocks", "state=\"quarantined\""), 0);
  EXPECT_EQ(blocks("d")["holders"].at(0)["state"], "quarantined");
  EXPECT_EQ(blocks("d")["holders"].at(0)["ending"], true);
  cluster.hub().HoldReceives(false);
  EXPECT_EQ(cluster.WaitForEnd("d", sequence).reason(), RequestEnded::REASON_CANCELLED);
  EXPECT_EQ(cluster.WaitForEnd("p", sequence).reason(), RequestEnded::REASON_CANCELLED);
  cluster.ExpectAllFreed("p");
  cluster.ExpectAllFreed("d");
  EXPECT_TRUE(Eventually([&] { return blocks("d")["num_holders"] == 0; }));
}

TEST(WorkerEndings, CancelWhileDecoding) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 900);
  cluster.SendReserve("d", sequence);
  cluster.SendPrefill("p", "d", sequence, cluster.WaitForGrant("d", sequence));
  cluster.WaitForToken("d", sequence, 3);
  cluster.SendCancel("d", sequence);
  const RequestEnded ended = cluster.WaitForEnd("d", sequence);
  // It may have come to its end first on a fast machine; either way nothing is left.
  EXPECT_TRUE(ended.reason() == RequestEnded::REASON_CANCELLED ||
              ended.reason() == RequestEnded::REASON_LENGTH);
  cluster.ExpectAllFreed("d");
}

TEST(WorkerEndings, CancelOfTheUnknownIsAnswered) {
  WorkerCluster cluster;
  cluster.Add("w", "both");
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 4);
  cluster.SendCancel("w", sequence);
  EXPECT_EQ(cluster.WaitForEnd("w", sequence).reason(), RequestEnded::REASON_CANCELLED);
}

TEST(WorkerEndings, ACancelThatComesTooLateEndsNothingTwice) {
  WorkerCluster cluster;
  cluster.Add("w", "both");
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 4);
  cluster.SendRun("w", sequence);
  EXPECT_EQ(cluster.WaitForEnd("w", sequence).reason(), RequestEnded::REASON_LENGTH);
  cluster.SendCancel("w", sequence);
  cluster.router().WaitFor("the answer to the cancel", [](const FakeRouter::Heard& heard) {
    return heard.message.ended().reason() == RequestEnded::REASON_CANCELLED;
  });
  EXPECT_EQ(cluster.Metric("w", "sluice_worker_requests_ended_total", "reason=\"length\""), 1);
  EXPECT_EQ(cluster.Metric("w", "sluice_worker_requests_ended_total"), 1);
  EXPECT_EQ(cluster.Metric("w", "sluice_worker_messages_ignored_total", "unknown"), 1);
}

// A decode worker holds a new attempt back until the old one has let go.
TEST(WorkerEndings, EveryAttemptEndsOnceInTheCounts) {
  WorkerCluster cluster;
  cluster.Add("d", "decode");
  constexpr int kRequests = 20;
  for (uint64_t request = 1; request <= kRequests; ++request) {
    const auto first = WorkerCluster::MakeSequence(request, 100, 4);
    auto second = first;
    second.attempt = Attempt(2);
    cluster.SendReserve("d", first);
    cluster.SendReserve("d", second);
    cluster.SendCancel("d", second);
    cluster.WaitForEnd("d", first);
    cluster.WaitForEnd("d", second);
  }
  EXPECT_EQ(cluster.Metric("d", "sluice_worker_requests_ended_total"), 2 * kRequests);
}

TEST(WorkerEndings, GrantThatNobodyUsesEndsByItsLease) {
  ClusterOptions options;
  options.transfer.lease = absl::Milliseconds(500);
  WorkerCluster cluster(options);
  cluster.Add("d", "decode");
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 4);
  cluster.SendReserve("d", sequence);
  cluster.WaitForGrant("d", sequence);
  const RequestEnded ended = cluster.WaitForEnd("d", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.stage(), "kv_transfer");
  cluster.ExpectAllFreed("d");
}

TEST(WorkerEndings, DeadlineIsEnforced) {
  WorkerCluster cluster;
  cluster.Add("d", "decode");
  auto sequence = WorkerCluster::MakeSequence(1, 100, 4);
  sequence.time_left = absl::Milliseconds(200);
  cluster.SendReserve("d", sequence);
  cluster.WaitForGrant("d", sequence);
  const RequestEnded ended = cluster.WaitForEnd("d", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.status_code(), static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  cluster.ExpectAllFreed("d");
}

TEST(WorkerEndings, LostRouterEndsItsRequests) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  const auto reserved = WorkerCluster::MakeSequence(1, 100, 4);
  cluster.SendReserve("d", reserved);
  cluster.WaitForGrant("d", reserved);
  const auto running = WorkerCluster::MakeSequence(2, 100, 900);
  cluster.SendReserve("d", running);
  cluster.SendPrefill("p", "d", running, cluster.WaitForGrant("d", running));
  cluster.WaitForToken("d", running, 1);
  cluster.router().DropStreams();
  cluster.ExpectAllFreed("d");
  cluster.ExpectAllFreed("p");
  // And the workers come back.
  EXPECT_TRUE(cluster.router().WaitForWorker("p"));
  EXPECT_TRUE(cluster.router().WaitForWorker("d"));
}

TEST(WorkerEndings, DecodeWorkerLostDuringTransferFailsThePrefill) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  cluster.hub().HoldReceives(true);
  const auto sequence = WorkerCluster::MakeSequence(1, 500, 4);
  cluster.SendReserve("d", sequence);
  cluster.SendPrefill("p", "d", sequence, cluster.WaitForGrant("d", sequence));
  cluster.WaitForToken("p", sequence, 0);
  cluster.Kill("d");
  const RequestEnded ended = cluster.WaitForEnd("p", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.stage(), "kv_transfer");
  cluster.ExpectAllFreed("p");
}

TEST(WorkerEndings, PrefillWorkerLostDuringTransferFailsTheReceive) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  cluster.hub().HoldReceives(true);
  const auto sequence = WorkerCluster::MakeSequence(1, 500, 4);
  cluster.SendReserve("d", sequence);
  cluster.SendPrefill("p", "d", sequence, cluster.WaitForGrant("d", sequence));
  cluster.WaitForToken("p", sequence, 0);
  cluster.Kill("p");
  const RequestEnded ended = cluster.WaitForEnd("d", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.stage(), "kv_transfer");
  cluster.ExpectAllFreed("d");
}

TEST(WorkerEndings, DrainFinishesWhatRunsAndRefusesTheNew) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  cluster.hub().HoldReceives(true);
  const auto sequence = WorkerCluster::MakeSequence(1, 200, 6);
  cluster.SendReserve("d", sequence);
  cluster.SendPrefill("p", "d", sequence, cluster.WaitForGrant("d", sequence));
  cluster.WaitForToken("p", sequence, 0);

  cluster.worker("p").BeginDrain();
  EXPECT_EQ(cluster.worker("p").NotReadyReason(), "draining");
  // Its blocks are not acknowledged: it may not leave.
  EXPECT_FALSE(cluster.worker("p").WaitDrained(absl::Milliseconds(300)));
  EXPECT_TRUE(cluster.router().last_load("p").draining());
  EXPECT_FALSE(cluster.router().last_load("p").ready());
  cluster.worker("d").BeginDrain();
  const auto late = WorkerCluster::MakeSequence(2, 100, 4);
  cluster.SendReserve("d", late);
  cluster.router().WaitFor("busy", [&](const FakeRouter::Heard& heard) {
    return heard.message.busy().request_id() == late.request.ToWire();
  });

  cluster.hub().HoldReceives(false);
  EXPECT_TRUE(cluster.worker("p").WaitDrained(absl::Seconds(10)));
  EXPECT_TRUE(cluster.worker("d").WaitDrained(absl::Seconds(10)));
  EXPECT_EQ(cluster.WaitForEnd("d", sequence).reason(), RequestEnded::REASON_LENGTH);
  EXPECT_EQ(cluster.Tokens(sequence), WorkerCluster::Ids(cluster.Oracle(sequence)));
}

TEST(WorkerEndings, StopTellsTheRouterAtOnce) {
  WorkerCluster cluster;
  cluster.Add("d", "decode");
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 4);
  cluster.SendReserve("d", sequence);
  cluster.WaitForGrant("d", sequence);
  cluster.worker("d").Stop();
  const RequestEnded ended = cluster.WaitForEnd("d", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.status_code(), static_cast<int>(absl::StatusCode::kUnavailable));
}

TEST(WorkerEndings, AWedgedEngineThreadIsNotReadyUntilItMoves) {
  EXPECT_LE(worker::WorkerOptions().heartbeat_limit, absl::Seconds(5));
  EXPECT_GE(worker::WorkerOptions().hang_limit, absl::Seconds(60));
  absl::Notification moves;
  ClusterOptions options;
  options.heartbeat_limit = absl::Milliseconds(1500);  // an idle thread beats every second
  options.hang_limit = absl::Seconds(6);
  options.before_forward = [&moves] { moves.WaitForNotification(); };
  WorkerCluster cluster(options);
  worker::Worker& worker = cluster.Add("w", "both");
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 3);
  const absl::Time began = absl::Now();
  cluster.SendRun("w", sequence);
  const auto not_ready = [&] {
    return absl::StrContains(worker.NotReadyReason(), "the engine thread has not moved");
  };
  EXPECT_TRUE(Eventually(not_ready));
  EXPECT_EQ(worker.NotLiveReason(), "") << "not ready is not yet dead";
  EXPECT_GE(absl::Now() - began, absl::Milliseconds(500)) << "a long step is not a wedged thread";
  // Routers hear it too, over the stream that the worker keeps alive.
  EXPECT_TRUE(Eventually([&] { return !cluster.router().last_load("w").ready(); }));

  EXPECT_TRUE(Eventually([&] {
    return absl::StrContains(worker.NotLiveReason(), "the engine thread has made no progress");
  }));

  moves.Notify();
  EXPECT_EQ(cluster.WaitForEnd("w", sequence).reason(), RequestEnded::REASON_LENGTH);
  EXPECT_TRUE(Eventually([&] { return worker.NotLiveReason().empty(); }));
  EXPECT_TRUE(Eventually([&] { return worker.NotReadyReason().empty(); }));
  EXPECT_TRUE(Eventually([&] { return cluster.router().last_load("w").ready(); }));
  cluster.ExpectAllFreed("w");
}

TEST(WorkerEndings, AWedgedTransferThreadIsNotReadyUntilItMoves) {
  ClusterOptions options;
  options.heartbeat_limit = absl::Milliseconds(1500);  // idle threads beat every second
  WorkerCluster cluster(options);
  worker::Worker& worker = cluster.Add("d", "decode");
  cluster.hub().HoldPolls(true);
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 3);
  cluster.SendReserve("d", sequence);  // nobody answers it now
  EXPECT_TRUE(Eventually([&] {
    return absl::StrContains(worker.NotReadyReason(), "the transfer thread has not moved");
  }));
  EXPECT_EQ(worker.NotLiveReason(), "") << "not ready is not yet dead";
  EXPECT_TRUE(Eventually([&] { return !cluster.router().last_load("d").ready(); }));

  cluster.hub().HoldPolls(false);
  cluster.WaitForGrant("d", sequence);
  EXPECT_TRUE(Eventually([&] { return worker.NotReadyReason().empty(); }));
  EXPECT_TRUE(Eventually([&] { return cluster.router().last_load("d").ready(); }));
}

TEST(WorkerEndings, AWedgedTransferThreadIsNotLiveInTheEnd) {
  ClusterOptions options;
  options.hang_limit = absl::Milliseconds(1500);
  WorkerCluster cluster(options);
  worker::Worker& worker = cluster.Add("p", "prefill");
  cluster.hub().HoldPolls(true);
  EXPECT_TRUE(Eventually([&] {
    return absl::StrContains(worker.NotLiveReason(), "the transfer thread has not moved");
  }));
  cluster.hub().HoldPolls(false);
  EXPECT_TRUE(Eventually([&] { return worker.NotLiveReason().empty(); }));
}

}  // namespace
}  // namespace sluice::testing
