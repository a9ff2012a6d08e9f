// How a UCX channel's thread waits: what it leaves to others of its core.
#include "kvtransfer/channel/ucx_wakeup.h"

#include <sys/resource.h>

#include <atomic>
#include <memory>
#include <thread>

#include "absl/time/clock.h"
#include "common/clock.h"
#include "gtest/gtest.h"
#include "kvtransfer/channel/ucx_context.h"

namespace sluice {
namespace {

class UcxWakeupTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<UcxContext>> context = UcxContext::Create({.tls = "sysv,self"});
    ASSERT_TRUE(context.ok()) << context.status();
    context_ = *std::move(context);
    ASSERT_TRUE(wakeup_.Init().ok());
    while (ucp_worker_progress(context_->worker()) != 0) {
    }
  }
  void Wait(bool operations_pending, absl::Duration timeout) {
    wakeup_.Wait(context_->worker(), context_->event_fd(), operations_pending, timeout);
  }
  // How often this thread gave up its core by itself.
  static int64_t NumSleeps() {
    rusage usage;
    EXPECT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
    return usage.ru_nvcsw;
  }

  std::unique_ptr<UcxContext> context_;
  UcxWakeup wakeup_;
};

// The peer that is waited for may need this core: a wait of which the kernel sees no sleep helps
// nobody. Sleeps of 10 us are none on virtual machines, where setting a timer takes longer.
TEST_F(UcxWakeupTest, WaitingWithOperationsPendingLeavesTheCore) {
  constexpr int kNumWaits = 40;
  const int64_t before = NumSleeps();
  for (int i = 0; i < kNumWaits; ++i) Wait(/*operations_pending=*/true, absl::Seconds(1));
  EXPECT_GE(NumSleeps() - before, kNumWaits / 2);
}

TEST_F(UcxWakeupTest, WaitingWithOperationsPendingIsShort) {
  const absl::Time begin = MonotonicNow();
  for (int i = 0; i < 20; ++i) Wait(/*operations_pending=*/true, absl::Seconds(60));
  EXPECT_LT(MonotonicNow() - begin, absl::Seconds(50));
}

TEST_F(UcxWakeupTest, WakeEndsASleep) {
  std::atomic<bool> woken{false};
  std::thread other([&] {
    absl::SleepFor(absl::Milliseconds(20));
    woken = true;
    wakeup_.Wake();
  });
  const absl::Time begin = MonotonicNow();
  // The first waits may be pauses, for UCX may have a signal left over.
  while (!woken) Wait(/*operations_pending=*/false, absl::Minutes(5));
  EXPECT_LT(MonotonicNow() - begin, absl::Minutes(1));
  other.join();
}

}  // namespace
}  // namespace sluice
