// How many requests may start over at a time, and which goes first.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/router_core/recovery_fixture.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;

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

}  // namespace
}  // namespace sluice::router
