// The small vocabulary types: queue, ids, clock, random bits, status macros.
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "absl/container/flat_hash_set.h"
#include "common/bounded_queue.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/random.h"
#include "common/status_macros.h"

namespace sluice {
namespace {

TEST(BoundedQueueTest, RefusesWhenFullAndKeepsOrder) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  EXPECT_FALSE(queue.TryPush(3));
  EXPECT_EQ(queue.size(), 2u);
  EXPECT_EQ(queue.TakeAll(), (std::vector<int>{1, 2}));
  EXPECT_TRUE(queue.TakeAll().empty());
  EXPECT_TRUE(queue.TryPush(4));
}

TEST(BoundedQueueTest, ClosedRefusesButGivesOutWhatItHolds) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.TryPush(1));
  queue.Close();
  EXPECT_FALSE(queue.TryPush(2));
  EXPECT_EQ(queue.WaitAndTakeAll(absl::InfiniteDuration()), (std::vector<int>{1}));
  EXPECT_TRUE(queue.WaitAndTakeAll(absl::InfiniteDuration()).empty());
}

TEST(BoundedQueueTest, WaitEndsWithTheTimeoutOrAPush) {
  BoundedQueue<int> queue(1);
  EXPECT_TRUE(queue.WaitAndTakeAll(absl::Milliseconds(5)).empty());
  std::thread pusher([&] { EXPECT_TRUE(queue.TryPush(7)); });
  EXPECT_EQ(queue.WaitAndTakeAll(absl::Seconds(60)), (std::vector<int>{7}));
  pusher.join();
}

TEST(BoundedQueueTest, WakesItsConsumerOncePerAcceptedPush) {
  int wakes = 0;
  BoundedQueue<int> queue(1, [&] { ++wakes; });
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_FALSE(queue.TryPush(2));
  EXPECT_EQ(wakes, 1);
}

TEST(BoundedQueueTest, LosesNothingBetweenThreads) {
  constexpr int kPerThread = 2000;
  BoundedQueue<int> queue(64);
  std::vector<std::thread> pushers;
  for (int t = 0; t < 3; ++t) {
    pushers.emplace_back([&queue, t] {
      for (int i = 0; i < kPerThread; ++i) {
        while (!queue.TryPush(t * kPerThread + i)) std::this_thread::yield();
      }
    });
  }
  std::set<int> seen;
  while (seen.size() < 3 * kPerThread) {
    const std::vector<int> taken = queue.WaitAndTakeAll(absl::Seconds(30));
    ASSERT_FALSE(taken.empty());
    for (const int item : taken) EXPECT_TRUE(seen.insert(item).second) << item;
  }
  for (std::thread& pusher : pushers) pusher.join();
}

TEST(IdsTest, WireFormOfA128BitId) {
  const auto id = RandomId128<TransferId>();
  TransferId copy;
  ASSERT_TRUE(TransferId::FromWire(id.ToWire(), &copy));
  EXPECT_EQ(copy, id);
  EXPECT_EQ(id.ToString().size(), 32u);
  EXPECT_FALSE(TransferId::FromWire("short", &copy));
  EXPECT_FALSE(TransferId::FromWire(std::string(17, 'x'), &copy));
  EXPECT_EQ(copy, id) << "a refused form must leave the id alone";
  EXPECT_TRUE(TransferId().is_zero());
  EXPECT_FALSE(id.is_zero());
}

TEST(RandomTest, IdentitiesDoNotRepeat) {
  absl::flat_hash_set<RequestId> ids;
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(ids.insert(RandomId128<RequestId>()).second);
  EXPECT_NE(RandomUint64(), RandomUint64());
}

TEST(ClockTest, NeverGoesBack) {
  absl::Time last = MonotonicNow();
  for (int i = 0; i < 1000; ++i) {
    const absl::Time now = RealClock().Now();
    ASSERT_GE(now, last);
    last = now;
  }
}

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  SLUICE_ASSIGN_OR_RETURN(const int half, Half(value));
  SLUICE_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

absl::Status Check(int value) {
  SLUICE_RETURN_IF_ERROR(Annotate(Half(value).status(), "check"));
  return absl::OkStatus();
}

TEST(StatusMacrosTest, ReturnEarlyWithTheSameCode) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(6).status(), absl::InvalidArgumentError("odd"));
  EXPECT_TRUE(Check(2).ok());
  EXPECT_EQ(Check(1), absl::InvalidArgumentError("check: odd"));
}

}  // namespace
}  // namespace sluice
