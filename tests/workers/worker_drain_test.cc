// A worker that is asked to leave while its engine thread is in the middle of something.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/workers/worker_cluster.h"

namespace sluice::testing {
namespace {

using v1::RequestEnded;

// The engine thread's first step lasts until Go.
class WorkerDrainTest : public ::testing::Test {
 protected:
  WorkerDrainTest() : cluster_(SlowFirstStep()) { cluster_.Add("w", "both"); }
  ~WorkerDrainTest() override { Go(); }

  ClusterOptions SlowFirstStep() {
    ClusterOptions options;
    options.before_forward = [this] {
      if (steps_.fetch_add(1) > 0) return;
      stepping_.Notify();
      go_.WaitForNotification();
    };
    return options;
  }
  void Go() {
    if (!std::exchange(going_, true)) go_.Notify();
  }

  std::atomic<int> steps_{0};
  absl::Notification stepping_, go_;
  bool going_ = false;
  WorkerCluster cluster_;
};

TEST_F(WorkerDrainTest, ARequestInItsFirstStepIsFinished) {
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 4);
  cluster_.SendRun("w", sequence);
  ASSERT_TRUE(stepping_.WaitForNotificationWithTimeout(absl::Seconds(30)));
  cluster_.worker("w").BeginDrain();
  EXPECT_FALSE(cluster_.worker("w").WaitDrained(absl::Milliseconds(300)));
  Go();
  EXPECT_TRUE(cluster_.worker("w").WaitDrained(absl::Seconds(30)));
  EXPECT_EQ(cluster_.WaitForEnd("w", sequence).reason(), RequestEnded::REASON_LENGTH);
  EXPECT_EQ(cluster_.Tokens(sequence), WorkerCluster::Ids(cluster_.Oracle(sequence)));
}

TEST_F(WorkerDrainTest, TheRouterHearsOfARequestThatIsCutOffInItsFirstStep) {
  const auto sequence = WorkerCluster::MakeSequence(1, 100, 4);
  cluster_.SendRun("w", sequence);
  ASSERT_TRUE(stepping_.WaitForNotificationWithTimeout(absl::Seconds(30)));
  std::thread stop([this] { cluster_.worker("w").Stop(); });
  EXPECT_TRUE(Eventually([this] { return cluster_.worker("w").NotReadyReason() == "draining"; }));
  absl::SleepFor(absl::Milliseconds(200));  // within the time that Stop gives a step
  Go();
  stop.join();
  const RequestEnded ended = cluster_.WaitForEnd("w", sequence);
  EXPECT_EQ(ended.reason(), RequestEnded::REASON_FAILED);
  EXPECT_EQ(ended.status_code(), static_cast<int>(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace sluice::testing
