#include "common/exit_guard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace sluice {
namespace {

ExitGuardOptions Quick(std::function<std::string()> hang_reason) {
  return {std::move(hang_reason), absl::Milliseconds(20), 3};
}

class ExitGuardTest : public testing::Test {
 protected:
  ExitGuardTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(ExitGuardTest, ALastingHangEndsTheProcess) {
  EXPECT_EXIT(
      {
        ExitGuard guard(Quick([] { return "the engine does not move"; }));
        absl::SleepFor(absl::Seconds(20));
        _exit(0);
      },
      testing::ExitedWithCode(1), "the engine does not move; leaving");
}

TEST_F(ExitGuardTest, AHangThatPassesDoesNot) {
  std::atomic<int> num_looks{0};
  absl::Notification enough;
  ExitGuard guard(Quick([&] {
    const int look = ++num_looks;
    if (look == 10) enough.Notify();
    return look % 3 == 0 ? "" : "slow";  // never three in a row
  }));
  enough.WaitForNotification();
}

TEST_F(ExitGuardTest, AnEndThatDoesNotComeIsMade) {
  EXPECT_EXIT(
      {
        ExitGuard guard(Quick([] { return ""; }));
        guard.LeaveWithin(absl::Milliseconds(50));
        absl::SleepFor(absl::Seconds(20));
        _exit(0);
      },
      testing::ExitedWithCode(1), "has not ended 50ms after its signal; leaving");
}

TEST_F(ExitGuardTest, AnEndThatComesIsLeftAlone) {
  EXPECT_EXIT(
      {
        {
          ExitGuard guard(Quick([] { return ""; }));
          guard.LeaveWithin(absl::Milliseconds(200));
        }
        absl::SleepFor(absl::Milliseconds(400));
        _exit(0);
      },
      testing::ExitedWithCode(0), "");
}

// While it ends, nobody asks why it does not move: the drain has its own time.
TEST_F(ExitGuardTest, AHangIsNotLookedForWhileItEnds) {
  EXPECT_EXIT(
      {
        ExitGuard guard(Quick([] { return "draining"; }));
        guard.LeaveWithin(absl::Seconds(20));
        absl::SleepFor(absl::Milliseconds(400));
        _exit(0);
      },
      testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace sluice
