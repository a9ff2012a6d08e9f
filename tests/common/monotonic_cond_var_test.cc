#include "common/monotonic_cond_var.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "common/bounded_queue.h"
#include "common/clock.h"
#include "tests/support/wall_clock_step.h"

namespace sluice {
namespace {

constexpr absl::Duration kShort = absl::Milliseconds(20);
constexpr absl::Duration kPatience = absl::Seconds(60);

TEST(MonotonicCondVarTest, ATimeoutEndsTheWait) {
  absl::Mutex mu;
  MonotonicCondVar changed;
  bool never = false;
  absl::MutexLock lock(&mu);
  const absl::Time start = MonotonicNow();
  EXPECT_FALSE(changed.Await(&mu, absl::Condition(&never), kShort));
  EXPECT_GE(MonotonicNow() - start, kShort);
  EXPECT_TRUE(changed.Await(&mu, absl::Condition::kTrue, absl::ZeroDuration()));
  EXPECT_FALSE(changed.Await(&mu, absl::Condition(&never), absl::ZeroDuration()));
  changed.Wait(&mu, -absl::InfiniteDuration());
}

// The clock that a process reads is ahead of the kernel's, as when the latter has just been set
// back: what waits until an instant of that clock waits for an hour.
TEST(MonotonicCondVarTest, AStepOfTheWallClockDoesNotProlongIt) {
  const testing::WallClockStep step(absl::Hours(1));
  absl::Mutex mu;
  MonotonicCondVar changed;
  const absl::Time start = MonotonicNow();
  {
    absl::MutexLock lock(&mu);
    changed.Wait(&mu, kShort);
  }
  BoundedQueue<int> queue(1);
  EXPECT_TRUE(queue.WaitAndTakeAll(kShort).empty());
  EXPECT_LT(MonotonicNow() - start, kPatience);
}

TEST(MonotonicCondVarTest, NoSignalIsLost) {
  constexpr int kThreads = 4, kRounds = 2000;
  absl::Mutex mu;
  MonotonicCondVar changed;
  int turn = 0;
  std::vector<std::thread> threads;
  for (int me = 0; me < kThreads; ++me) {
    threads.emplace_back([&, me] {
      for (int round = 0; round < kRounds; ++round) {
        const auto is_mine = [&] { return turn == round * kThreads + me; };
        absl::MutexLock lock(&mu);
        ASSERT_TRUE(changed.Await(&mu, absl::Condition(&is_mine), absl::InfiniteDuration()));
        ++turn;
        changed.SignalAll();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(turn, kThreads * kRounds);
}

TEST(MonotonicCondVarTest, ASignalWakesOneAndAllWakeEverybody) {
  constexpr int kThreads = 3;
  absl::Mutex mu;
  MonotonicCondVar changed;
  int tickets = 0, served = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      const auto is_mine = [&] { return tickets > 0; };
      absl::MutexLock lock(&mu);
      EXPECT_TRUE(changed.Await(&mu, absl::Condition(&is_mine), kPatience));
      --tickets;
      ++served;
    });
  }
  {
    absl::MutexLock lock(&mu);
    ++tickets;
    changed.Signal();
  }
  {
    absl::MutexLock lock(&mu);
    tickets += kThreads - 1;
    changed.SignalAll();
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(served, kThreads);
}

}  // namespace
}  // namespace sluice
