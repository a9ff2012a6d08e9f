#include "services/router/core/policy.h"

#include <gtest/gtest.h>

#include "services/router/core/journal.h"
#include "services/router/core/prefix_index.h"

namespace sluice::router {
namespace {

WorkerView Worker(const std::string& id, WorkerRole role) {
  WorkerView worker;
  worker.session = SessionId(std::hash<std::string>{}(id));
  worker.worker_id = id;
  worker.role = role;
  worker.fingerprint = "fp";
  worker.max_model_len = 1000;
  worker.max_num_seqs = 10;
  worker.kv_block_tokens = 64;
  worker.available_blocks = 100;
  worker.prefill_tokens_per_second = 1000;
  return worker;
}

ClusterView View(std::vector<WorkerView> workers) { return {std::move(workers)}; }

TEST(DecodePolicyTest, TakesTheLeastLoadedForItsSize) {
  WorkerView big = Worker("d1", WorkerRole::kDecode), small = Worker("d2", WorkerRole::kDecode);
  big.max_num_seqs = 100;
  big.requests = 20;   // 0.2
  small.requests = 3;  // 0.3
  const ClusterView view = View({big, small, Worker("p", WorkerRole::kPrefill)});
  EXPECT_EQ(ChooseDecodeWorker(view, {10, {}}).worker->worker_id, "d1");
}

TEST(DecodePolicyTest, EnoughBlocksComeBeforeLoad) {
  WorkerView full = Worker("d1", WorkerRole::kDecode), loaded = Worker("d2", WorkerRole::kDecode);
  full.available_blocks = 2;
  loaded.requests = 9;
  const ClusterView view = View({full, loaded, Worker("p", WorkerRole::kPrefill)});
  EXPECT_EQ(ChooseDecodeWorker(view, {64 * 2, {}}).worker->worker_id, "d2");
  EXPECT_EQ(ChooseDecodeWorker(view, {64 * 2 - 1, {}}).worker->worker_id, "d1");
}

TEST(DecodePolicyTest, WhoHoldsKvOfTheRequestComesBeforeLoad) {
  WorkerView holder = Worker("d2", WorkerRole::kDecode);
  holder.requests = 9;
  const WorkerView idle = Worker("d1", WorkerRole::kDecode), p = Worker("p", WorkerRole::kPrefill);
  const RouteQuery query = {128, {}, holder.session};
  EXPECT_EQ(ChooseDecodeWorker(View({idle, holder, p}), query).worker->worker_id, "d2");
  holder.available_blocks = 2;
  EXPECT_EQ(ChooseDecodeWorker(View({idle, holder, p}), query).worker->worker_id, "d1");
}

TEST(DecodePolicyTest, ALateWorkerIsTheLastResort) {
  WorkerView late = Worker("d1", WorkerRole::kDecode), loaded = Worker("d2", WorkerRole::kDecode);
  const WorkerView p = Worker("p", WorkerRole::kPrefill);
  late.is_late = true;
  loaded.requests = 9;
  loaded.available_blocks = 2;
  const RouteQuery query = {128, {}, late.session};
  EXPECT_EQ(ChooseDecodeWorker(View({late, loaded, p}), query).worker->worker_id, "d2");
  EXPECT_EQ(ChooseDecodeWorker(View({late, p}), query).worker->worker_id, "d1");
}

TEST(DecodePolicyTest, WhoHasOnlySuspectLinksComesAfterTheLoadedButBeforeTheLate) {
  WorkerView cut = Worker("d1", WorkerRole::kDecode), loaded = Worker("d2", WorkerRole::kDecode);
  const WorkerView p = Worker("p1", WorkerRole::kPrefill), q = Worker("p2", WorkerRole::kPrefill);
  loaded.requests = 9;
  loaded.available_blocks = 2;
  const RouteQuery query = {128, {}, cut.session};
  ClusterView view = View({cut, loaded, p, q});
  view.suspect_links = {{p.session, cut.session}};
  EXPECT_EQ(ChooseDecodeWorker(view, query).worker->worker_id, "d1");  // through p2
  const std::vector<SessionId> excluded = {q.session};
  EXPECT_EQ(ChooseDecodeWorker(view, {128, excluded, cut.session}).worker->worker_id, "d2");
  view.suspect_links.push_back({q.session, cut.session});
  EXPECT_EQ(ChooseDecodeWorker(view, query).worker->worker_id, "d2");
  view.workers[1].is_late = true;
  EXPECT_EQ(ChooseDecodeWorker(view, query).worker->worker_id, "d1");
}

TEST(DecodePolicyTest, TiesGoToMoreBlocksThenToTheName) {
  WorkerView a = Worker("d1", WorkerRole::kDecode), b = Worker("d2", WorkerRole::kDecode);
  const WorkerView p = Worker("p", WorkerRole::kPrefill);
  EXPECT_EQ(ChooseDecodeWorker(View({a, b, p}), {10, {}}).worker->worker_id, "d1");
  b.available_blocks = 101;
  EXPECT_EQ(ChooseDecodeWorker(View({a, b, p}), {10, {}}).worker->worker_id, "d2");
}

TEST(DecodePolicyTest, AWorkerOfBothRolesIsTheFallback) {
  WorkerView d = Worker("d", WorkerRole::kDecode);
  d.requests = 10;
  const WorkerView both = Worker("b", WorkerRole::kBoth), p = Worker("p", WorkerRole::kPrefill);
  EXPECT_EQ(ChooseDecodeWorker(View({both, d, p}), {10, {}}).worker->worker_id, "d");
  EXPECT_EQ(ChooseDecodeWorker(View({both, d}), {10, {}}).worker->worker_id, "b");
  EXPECT_EQ(ChooseDecodeWorker(View({both, p}), {10, {}}).worker->worker_id, "b");
  const std::vector<SessionId> excluded = {d.session};
  EXPECT_EQ(ChooseDecodeWorker(View({both, d, p}), {10, excluded}).worker->worker_id, "b");
}

TEST(DecodePolicyTest, SaysWhyThereIsNone) {
  const WorkerView d = Worker("d", WorkerRole::kDecode), p = Worker("p", WorkerRole::kPrefill);
  EXPECT_EQ(ChooseDecodeWorker(View({}), {10, {}}).none, NoRoute::kNoDecode);
  EXPECT_EQ(ChooseDecodeWorker(View({p}), {10, {}}).none, NoRoute::kNoDecode);
  EXPECT_EQ(ChooseDecodeWorker(View({d}), {10, {}}).none, NoRoute::kNoPrefill);
  EXPECT_EQ(ChooseDecodeWorker(View({d, p}), {1000, {}}).none, NoRoute::kTooLong);
  EXPECT_NE(ChooseDecodeWorker(View({d, p}), {999, {}}).worker, nullptr);
  const std::vector<SessionId> excluded = {d.session};
  EXPECT_EQ(ChooseDecodeWorker(View({d, p}), {10, excluded}).none, NoRoute::kAllExcluded);
}

TEST(DecodePolicyTest, APairIsAsLongAsItsShorterWorker) {
  WorkerView d = Worker("d", WorkerRole::kDecode), p = Worker("p", WorkerRole::kPrefill);
  const WorkerView both = Worker("b", WorkerRole::kBoth);
  p.max_model_len = 500;
  EXPECT_EQ(ChooseDecodeWorker(View({d, p}), {500, {}}).none, NoRoute::kTooLong);
  EXPECT_NE(ChooseDecodeWorker(View({d, p}), {499, {}}).worker, nullptr);
  EXPECT_EQ(ChooseDecodeWorker(View({both, d, p}), {500, {}}).worker->worker_id, "b");
  EXPECT_NE(ChooseDecodeWorker(View({d, p, Worker("q", WorkerRole::kPrefill)}), {500, {}}).worker,
            nullptr);
}

TEST(DecodePolicyTest, NeverPairsDifferentFingerprints) {
  WorkerView d = Worker("d", WorkerRole::kDecode), p = Worker("p", WorkerRole::kPrefill);
  p.fingerprint = "other";
  const ClusterView view = View({d, p});
  EXPECT_EQ(ChooseDecodeWorker(view, {10, {}}).none, NoRoute::kNoPrefill);
  EXPECT_EQ(ChoosePrefillWorker(view, {10, {}}, {{}, "fp"}, nullptr, 1).worker, nullptr);
  EXPECT_EQ(MissingRole(view), "no ready prefill worker is compatible with a ready decode worker");
}

TEST(PrefillPolicyTest, WeighsCachedPrefixAgainstQueuedSeconds) {
  ClusterView view = View({Worker("p1", WorkerRole::kPrefill), Worker("p2", WorkerRole::kPrefill)});
  const auto match = [](const WorkerView& worker) { return worker.worker_id == "p1" ? 10 : 0; };
  // 600 + 800 - 640 = 760 tokens against 800.
  view.workers[0].queued_prefill_tokens = 600;
  PrefillChoice choice = ChoosePrefillWorker(view, {800, {}}, {{}, "fp"}, match, 1);
  EXPECT_EQ(choice.worker->worker_id, "p1");
  EXPECT_EQ(choice.matched_blocks, 10);
  EXPECT_DOUBLE_EQ(choice.estimated_seconds, 0.76);
  view.workers[0].queued_prefill_tokens = 641;
  choice = ChoosePrefillWorker(view, {800, {}}, {{}, "fp"}, match, 1);
  EXPECT_EQ(choice.worker->worker_id, "p2");
}

TEST(PrefillPolicyTest, AFasterWorkerMayHaveALongerQueue) {
  WorkerView fast = Worker("p1", WorkerRole::kPrefill), slow = Worker("p2", WorkerRole::kPrefill);
  fast.prefill_tokens_per_second = 10'000;
  fast.queued_prefill_tokens = 5000;  // 0.51 s against 0.1 s
  EXPECT_EQ(
      ChoosePrefillWorker(View({fast, slow}), {100, {}}, {{}, "fp"}, nullptr, 1).worker->worker_id,
      "p2");
  slow.prefill_tokens_per_second = 0;  // not known: the default, here 100 per second
  EXPECT_EQ(ChoosePrefillWorker(View({fast, slow}), {100, {}}, {{}, "fp"}, nullptr, 100)
                .worker->worker_id,
            "p1");
}

TEST(PrefillPolicyTest, ALateWorkerIsTheLastResort) {
  WorkerView late = Worker("p1", WorkerRole::kPrefill), busy = Worker("p2", WorkerRole::kPrefill);
  late.is_late = true;
  busy.queued_prefill_tokens = 5000;
  const auto none = [](const WorkerView&) { return 0; };
  EXPECT_EQ(
      ChoosePrefillWorker(View({late, busy}), {10, {}}, {{}, "fp"}, none, 1).worker->worker_id,
      "p2");
  EXPECT_EQ(
      ChoosePrefillWorker(View({busy, late}), {10, {}}, {{}, "fp"}, none, 1).worker->worker_id,
      "p2");
  EXPECT_EQ(ChoosePrefillWorker(View({late}), {10, {}}, {{}, "fp"}, none, 1).worker->worker_id,
            "p1");
}

TEST(PrefillPolicyTest, ASuspectLinkComesAfterALongQueueButBeforeTheLate) {
  const WorkerView suspect = Worker("p1", WorkerRole::kPrefill);
  WorkerView busy = Worker("p2", WorkerRole::kPrefill);
  busy.queued_prefill_tokens = 5000;
  ClusterView view = View({suspect, busy});
  const DecodePeer decode = {SessionId(7), "fp"};
  view.suspect_links = {{suspect.session, decode.session}};
  EXPECT_EQ(ChoosePrefillWorker(view, {10, {}}, decode, nullptr, 1).worker->worker_id, "p2");
  EXPECT_EQ(ChoosePrefillWorker(view, {10, {}}, {SessionId(8), "fp"}, nullptr, 1).worker->worker_id,
            "p1");
  view.workers[1].is_late = true;
  EXPECT_EQ(ChoosePrefillWorker(view, {10, {}}, decode, nullptr, 1).worker->worker_id, "p1");
}

TEST(PrefillPolicyTest, TiesGoToTheName) {
  const ClusterView view =
      View({Worker("p1", WorkerRole::kPrefill), Worker("p2", WorkerRole::kPrefill)});
  EXPECT_EQ(ChoosePrefillWorker(view, {100, {}}, {{}, "fp"}, nullptr, 1).worker->worker_id, "p1");
}

TEST(PrefillPolicyTest, AFullMatchStillComputesTheLastToken) {
  const auto match = [](const WorkerView&) { return 2; };
  const PrefillChoice choice = ChoosePrefillWorker(View({Worker("p", WorkerRole::kPrefill)}),
                                                   {128, {}}, {{}, "fp"}, match, 1);
  EXPECT_DOUBLE_EQ(choice.estimated_seconds, 0.001);
}

BlockHash Hash(int i) {
  BlockHash hash;
  hash.bytes[0] = static_cast<uint8_t>(i);
  hash.bytes[1] = static_cast<uint8_t>(i >> 8);
  return hash;
}

TEST(PrefixIndexTest, MatchEndsAtTheFirstMiss) {
  PrefixIndex index(100);
  const std::vector<BlockHash> chain = {Hash(1), Hash(2), Hash(3)};
  index.Update(SessionId(1), {Hash(1), Hash(3)}, {});
  EXPECT_EQ(index.MatchedBlocks(SessionId(1), chain), 1);
  EXPECT_EQ(index.MatchedBlocks(SessionId(2), chain), 0);
  index.Update(SessionId(1), {Hash(2)}, {});
  EXPECT_EQ(index.MatchedBlocks(SessionId(1), chain), 3);
  index.Update(SessionId(1), {}, {Hash(1)});
  EXPECT_EQ(index.MatchedBlocks(SessionId(1), chain), 0);
  index.Forget(SessionId(1));
  EXPECT_EQ(index.num_blocks(SessionId(1)), 0u);
}

TEST(PrefixIndexTest, IsBoundedPerWorker) {
  PrefixIndex index(3);
  for (int i = 0; i < 10; ++i) index.Update(SessionId(1), {Hash(i)}, {});
  EXPECT_EQ(index.num_blocks(SessionId(1)), 3u);
  index.Update(SessionId(1), {Hash(50)}, {Hash(0)});
  EXPECT_EQ(index.num_blocks(SessionId(1)), 3u);
}

SampledToken Token(TokenId id) {
  SampledToken token;
  token.token = id;
  return token;
}

std::vector<TokenId> Ids(const TokenList& tokens) {
  std::vector<TokenId> ids;
  for (const SampledToken& token : tokens) ids.push_back(token.token);
  return ids;
}

TEST(JournalTest, HoldsTokensThatAreAheadAndDropsDuplicates) {
  Journal journal(4);
  TokenList ready;
  EXPECT_EQ(journal.Take(1, Token(11), &ready), Journal::Outcome::kHeld);
  EXPECT_EQ(journal.Take(1, Token(99), &ready), Journal::Outcome::kDuplicate);
  EXPECT_EQ(journal.Take(2, Token(12), &ready), Journal::Outcome::kHeld);
  EXPECT_TRUE(ready.empty());
  EXPECT_TRUE(journal.has_gap());
  EXPECT_EQ(journal.Take(0, Token(10), &ready), Journal::Outcome::kEmitted);
  EXPECT_EQ(Ids(ready), (std::vector<TokenId>{10, 11, 12}));
  EXPECT_FALSE(journal.has_gap());
  EXPECT_EQ(journal.Take(2, Token(12), &ready), Journal::Outcome::kDuplicate);
  EXPECT_EQ(journal.tokens(), (std::vector<TokenId>{10, 11, 12}));
}

TEST(JournalTest, RefusesTokensTooFarAhead) {
  Journal journal(4);
  TokenList ready;
  EXPECT_EQ(journal.Take(4, Token(4), &ready), Journal::Outcome::kHeld);
  EXPECT_EQ(journal.Take(5, Token(5), &ready), Journal::Outcome::kTooFar);
  journal.DropHeld();
  EXPECT_FALSE(journal.has_gap());
  EXPECT_EQ(journal.Take(0, Token(0), &ready), Journal::Outcome::kEmitted);
  EXPECT_EQ(journal.size(), 1);
}

}  // namespace
}  // namespace sluice::router
