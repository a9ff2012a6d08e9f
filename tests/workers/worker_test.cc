// Workers under the router's protocol: what they answer, and what they hold afterwards.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "tests/support/fake_model.h"
#include "tests/workers/worker_cluster.h"

namespace sluice::testing {
namespace {

using v1::RequestEnded;

TEST(Worker, RegistersWithWhatRoutersNeed) {
  WorkerCluster cluster;
  cluster.Add("d", "decode");
  const v1::Register registration = cluster.router().registration("d");
  EXPECT_EQ(registration.role(), v1::WORKER_ROLE_DECODE);
  EXPECT_EQ(registration.model(), "fake");
  EXPECT_NE(registration.incarnation(), 0U);
  EXPECT_FALSE(registration.fingerprint().empty());
  EXPECT_EQ(registration.num_kv_blocks(), 64);
  EXPECT_EQ(registration.kv_block_tokens(), kBlockTokens);
  EXPECT_EQ(registration.max_model_len(), 1024);
  EXPECT_EQ(registration.vocab_size(), kFakeVocabSize);
  EXPECT_FALSE(registration.kv_address().empty());
  EXPECT_EQ(registration.protocol_version(), rpc::kProtocolVersion);
}

TEST(Worker, BothAnswersAlone) {
  WorkerCluster cluster;
  cluster.Add("w", "both");
  const auto sequence = WorkerCluster::MakeSequence(1, 300, 20);
  cluster.SendRun("w", sequence);
  EXPECT_EQ(cluster.WaitForEnd("w", sequence).reason(), RequestEnded::REASON_LENGTH);
  EXPECT_EQ(cluster.Tokens(sequence), WorkerCluster::Ids(cluster.Oracle(sequence)));
  cluster.ExpectAllFreed("w");
}

TEST(Worker, BothRecomputesForWantOfBlocksAndCountsIt) {
  std::atomic<bool> both_there{false};
  ClusterOptions options;
  options.num_kv_blocks = 12;  // room for the beginning of both answers and the end of one
  options.before_forward = [&both_there] {
    if (!both_there) absl::SleepFor(absl::Milliseconds(5));
  };
  WorkerCluster cluster(options);
  cluster.Add("w", "both");
  const auto preemptions = [&] { return cluster.Metric("w", "sluice_engine_preemptions_total"); };
  EXPECT_EQ(preemptions(), 0);
  const auto first = WorkerCluster::MakeSequence(1, 60, 560);
  const auto second = WorkerCluster::MakeSequence(2, 60, 560);
  cluster.SendRun("w", first);
  cluster.SendRun("w", second);
  cluster.WaitForRequests("w", 2);
  both_there = true;
  for (const rpc::SequenceAttempt* sequence : {&first, &second}) {
    EXPECT_EQ(cluster.WaitForEnd("w", *sequence).reason(), RequestEnded::REASON_LENGTH);
    EXPECT_EQ(cluster.Tokens(*sequence), WorkerCluster::Ids(cluster.Oracle(*sequence)));
  }
  EXPECT_TRUE(Eventually([&] { return preemptions() > 0; }));
  cluster.ExpectAllFreed("w");
}

TEST(Worker, FirstTokenCarriesStagesAndCachedTokens) {
  WorkerCluster cluster;
  cluster.Add("w", "both");
  const auto first = WorkerCluster::MakeSequence(1, 200, 2);
  auto second = WorkerCluster::MakeSequence(2, 200, 2);
  second.tokens = first.tokens;
  int cached[2] = {};
  for (const rpc::SequenceAttempt* sequence :
       std::initializer_list<const rpc::SequenceAttempt*>{&first, &second}) {
    cluster.SendRun("w", *sequence);
    cluster.WaitForEnd("w", *sequence);
    for (const auto& heard : cluster.router().heard()) {
      for (const auto& token : heard.message.tokens().tokens()) {
        if (token.request_id() != sequence->request.ToWire()) continue;
        EXPECT_EQ(token.has_stages(), token.index() == 0);
        if (token.index() == 0) cached[sequence == &second] = token.cached_tokens();
      }
    }
  }
  EXPECT_EQ(cached[0], 0);
  EXPECT_EQ(cached[1], 192);
}

TEST(Worker, HandoffGivesTheSameAnswerAsOneWorker) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  // Around block and chunk boundaries: the last block full, partial, alone.
  uint64_t request = 0;
  for (const int prompt_tokens : {1, 63, 64, 65, 128, 129, 500}) {
    const auto sequence = WorkerCluster::MakeSequence(++request, prompt_tokens, 12);
    cluster.RunDisaggregated("p", "d", sequence);
    EXPECT_EQ(cluster.WaitForEnd("d", sequence).reason(), RequestEnded::REASON_LENGTH);
    EXPECT_EQ(cluster.Tokens(sequence), WorkerCluster::Ids(cluster.Oracle(sequence)))
        << prompt_tokens << " prompt tokens";
  }
  cluster.ExpectAllFreed("p");
  cluster.ExpectAllFreed("d");
  EXPECT_EQ(cluster.Metric("p", "sluice_kv_transfers_total", "outcome=\"ok\""), request);
  EXPECT_EQ(cluster.Metric("d", "sluice_kv_transfers_total", "outcome=\"ok\""), request);
}

TEST(Worker, FirstTokenComesFromPrefillTheRestFromDecode) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 5);
  cluster.RunDisaggregated("p", "d", sequence);
  std::map<std::string, std::set<int>> indices;
  bool ready_before_tokens = false;
  for (const auto& heard : cluster.router().heard()) {
    if (heard.message.has_kv_ready()) ready_before_tokens = indices["d"].empty();
    for (const auto& token : heard.message.tokens().tokens()) {
      indices[heard.worker_id].insert(token.index());
    }
  }
  EXPECT_TRUE(ready_before_tokens);
  EXPECT_EQ(indices["p"], (std::set<int>{0}));
  EXPECT_EQ(indices["d"], (std::set<int>{1, 2, 3, 4}));
}

TEST(Worker, SharedPrefixIsNotSentTwice) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  const auto first = WorkerCluster::MakeSequence(1, 256, 4);
  cluster.RunDisaggregated("p", "d", first);
  const auto bytes_received = [&] {
    return cluster.Metric("d", "sluice_kv_transfer_bytes_total", "direction=\"recv\"");
  };
  const double block_bytes = static_cast<double>(FakeKvLayout().block_bytes());
  EXPECT_TRUE(Eventually([&] { return bytes_received() == 4 * block_bytes; })) << bytes_received();
  auto second = WorkerCluster::MakeSequence(2, 300, 4);
  std::copy(first.tokens.begin(), first.tokens.end(), second.tokens.begin());
  cluster.RunDisaggregated("p", "d", second);
  EXPECT_EQ(cluster.Tokens(second), WorkerCluster::Ids(cluster.Oracle(second)));
  EXPECT_EQ(cluster.WaitForGrant("d", second).cached_tokens(), 256);
  // 44 tokens in one block, after four blocks the first time.
  EXPECT_TRUE(Eventually([&] { return bytes_received() == 5 * block_bytes; })) << bytes_received();
}

TEST(Worker, ResumesWhereAnotherAttemptStopped) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  auto sequence = WorkerCluster::MakeSequence(1, 100, 20);
  const std::vector<TokenId> answer = WorkerCluster::Ids(cluster.Oracle(sequence));
  // Seven tokens were journalled before some worker died.
  sequence.attempt = Attempt(2);
  sequence.tokens.insert(sequence.tokens.end(), answer.begin(), answer.begin() + 7);
  sequence.num_output_tokens = 7;
  cluster.RunDisaggregated("p", "d", sequence);
  EXPECT_EQ(cluster.Tokens(sequence), std::vector<TokenId>(answer.begin() + 7, answer.end()));
}

TEST(Worker, FirstTokenMayEndTheAnswer) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  const auto one = WorkerCluster::MakeSequence(1, 70, 1);
  cluster.RunDisaggregated("p", "d", one);
  EXPECT_EQ(cluster.WaitForEnd("d", one).reason(), RequestEnded::REASON_LENGTH);
  EXPECT_EQ(cluster.Tokens(one).size(), 1U);

  auto stop = WorkerCluster::MakeSequence(2, 70, 9);
  stop.sampling.stop_token_ids = {cluster.Oracle(stop).tokens[0].token};
  cluster.RunDisaggregated("p", "d", stop);
  EXPECT_EQ(cluster.WaitForEnd("d", stop).reason(), RequestEnded::REASON_STOP);
  EXPECT_EQ(cluster.Tokens(stop).size(), 1U);
  cluster.ExpectAllFreed("d");
}

TEST(Worker, FullPoolAnswersBusyAndLaterGrants) {
  ClusterOptions options;
  options.num_kv_blocks = 8;
  WorkerCluster cluster(options);
  cluster.Add("d", "decode");
  const auto big = WorkerCluster::MakeSequence(1, 400, 4);
  cluster.SendReserve("d", big);
  cluster.WaitForGrant("d", big);
  const auto other = WorkerCluster::MakeSequence(2, 300, 4);
  cluster.SendReserve("d", other);
  const v1::Busy busy =
      cluster.router()
          .WaitFor("busy", [](const FakeRouter::Heard& heard) { return heard.message.has_busy(); })
          .busy();
  EXPECT_EQ(busy.request_id(), other.request.ToWire());
  EXPECT_GT(busy.retry_after().nanos(), 0);
  cluster.SendCancel("d", big);
  EXPECT_EQ(cluster.WaitForEnd("d", big).reason(), RequestEnded::REASON_CANCELLED);
  cluster.SendReserve("d", other);  // the same attempt again
  cluster.WaitForGrant("d", other);
}

TEST(Worker, ReserveIsIdempotentAndStaleAttemptsAreIgnored) {
  WorkerCluster cluster;
  cluster.Add("d", "decode");
  const auto first = WorkerCluster::MakeSequence(1, 100, 4, /*attempt=*/2);
  cluster.SendReserve("d", first);
  const v1::Grant grant = cluster.WaitForGrant("d", first);
  cluster.SendReserve("d", first);
  auto stale = first;
  stale.attempt = Attempt(1);
  cluster.SendReserve("d", stale);
  // A newer attempt takes the older one's place.
  auto newer = first;
  newer.attempt = Attempt(3);
  cluster.SendReserve("d", newer);
  EXPECT_NE(cluster.WaitForGrant("d", newer).transfer_id(), grant.transfer_id());
  EXPECT_EQ(cluster.WaitForEnd("d", first).reason(), RequestEnded::REASON_CANCELLED);
  int grants = 0;
  for (const auto& heard : cluster.router().heard()) {
    if (heard.message.grant().attempt() == 2) {
      EXPECT_EQ(heard.message.grant().transfer_id(), grant.transfer_id());
      ++grants;
    }
    EXPECT_NE(heard.message.grant().attempt(), 1U);
  }
  EXPECT_EQ(grants, 2);
  cluster.WaitForRequests("d", 1);
  EXPECT_EQ(cluster.Metric("d", "sluice_worker_messages_ignored_total", "stale_attempt"), 1);
  EXPECT_EQ(cluster.Metric("d", "sluice_worker_messages_ignored_total", "duplicate"), 1);
}

TEST(Worker, MessagesOfAnotherRoleAreRefused) {
  WorkerCluster cluster;
  cluster.Add("p", "prefill");
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 4);
  cluster.SendReserve("p", sequence);
  const RequestEnded ended = cluster.WaitForEnd("p", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.status_code(), static_cast<int>(absl::StatusCode::kFailedPrecondition));
}

TEST(Worker, ImpossibleRequestIsRefusedByName) {
  WorkerCluster cluster;
  cluster.Add("w", "both");
  const auto sequence = WorkerCluster::MakeSequence(1, 2000, 4);
  cluster.SendRun("w", sequence);
  const RequestEnded ended = cluster.WaitForEnd("w", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.status_code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(ended.stage(), "prefill");
}

TEST(Worker, LoadReportsFollowThePrefixCache) {
  WorkerCluster cluster;
  cluster.Add("w", "both");
  const auto sequence = WorkerCluster::MakeSequence(1, 256, 4);
  cluster.SendRun("w", sequence);
  cluster.WaitForEnd("w", sequence);
  cluster.ExpectAllFreed("w");
  // A router that attaches later is told everything.
  cluster.router().DropStreams();
  ASSERT_TRUE(cluster.router().WaitForWorker("w"));
  bool told = false;
  for (int i = 0; i < 400 && !told; ++i) {
    told = cluster.router().last_load("w").kv_blocks_added_size() == 4;
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_TRUE(told);
}

TEST(Worker, ManyRequestsAtOnce) {
  ClusterOptions options;
  options.num_kv_blocks = 128;
  WorkerCluster cluster(options);
  cluster.Add("p", "prefill");
  cluster.Add("d", "decode");
  std::vector<rpc::SequenceAttempt> sequences;
  for (uint64_t request = 1; request <= 12; ++request) {
    sequences.push_back(
        WorkerCluster::MakeSequence(request, static_cast<int>(40 + request * 23), 10));
    cluster.SendReserve("d", sequences.back());
  }
  for (const auto& sequence : sequences) {
    cluster.SendPrefill("p", "d", sequence, cluster.WaitForGrant("d", sequence));
  }
  for (const auto& sequence : sequences) {
    EXPECT_EQ(cluster.WaitForEnd("d", sequence).reason(), RequestEnded::REASON_LENGTH);
    EXPECT_EQ(cluster.WaitForEnd("p", sequence).reason(), RequestEnded::REASON_HANDED_OVER);
    EXPECT_EQ(cluster.Tokens(sequence), WorkerCluster::Ids(cluster.Oracle(sequence)));
  }
  cluster.ExpectAllFreed("p");
  cluster.ExpectAllFreed("d");
}

}  // namespace
}  // namespace sluice::testing
