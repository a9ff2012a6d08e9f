// The bounds of a task pool's queue: tasks and the bytes they hold.
#include "services/router/api/task_pool.h"

#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"

namespace sluice::router {
namespace {

TEST(TaskPoolTest, TasksAndBytesAreBounded) {
  absl::Notification held, released, ran;
  TaskPool pool("test", 1, /*max_queued_tasks=*/3, /*max_queued_bytes=*/100);
  ASSERT_TRUE(pool.Post([&] {
    held.Notify();
    released.WaitForNotification();
  }));
  held.WaitForNotification();  // what runs counts no longer

  EXPECT_TRUE(pool.Post([] {}, 60));
  EXPECT_FALSE(pool.Post([] {}, 41));
  EXPECT_TRUE(pool.Post([] {}, 40));
  EXPECT_TRUE(pool.Post([&] { ran.Notify(); }, 0));
  EXPECT_FALSE(pool.Post([] {}, 0));
  released.Notify();
  ran.WaitForNotification();
}

TEST(TaskPoolTest, ALargeTaskMayWaitAloneAndIsForgottenOnceItRan) {
  absl::Notification held, released, ran, ran_again;
  TaskPool pool("test", 1, /*max_queued_tasks=*/3, /*max_queued_bytes=*/100);
  ASSERT_TRUE(pool.Post([&] {
    held.Notify();
    released.WaitForNotification();
  }));
  held.WaitForNotification();
  EXPECT_TRUE(pool.Post([&] { ran.Notify(); }, 1000));
  EXPECT_FALSE(pool.Post([] {}, 1));
  released.Notify();
  ran.WaitForNotification();
  EXPECT_TRUE(pool.Post([] {}, 50));
  EXPECT_TRUE(pool.Post([&] { ran_again.Notify(); }, 50));
  ran_again.WaitForNotification();
}

}  // namespace
}  // namespace sluice::router
