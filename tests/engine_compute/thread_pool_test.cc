#include "engine/device/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>
#include <vector>

namespace sluice {
namespace {

double ProcessCpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

TEST(ThreadPool, RunsEveryTaskOnceInManyShortLoops) {
  ThreadPool pool(4);
  EXPECT_EQ(pool.num_threads(), 4);
  std::vector<std::atomic<int>> runs(64);
  for (int loop = 0; loop < 5000; ++loop) {
    const int tasks = loop % 65;
    for (auto& run : runs) run.store(0, std::memory_order_relaxed);
    pool.ParallelFor(tasks, [&](int task, int worker) {
      ASSERT_GE(worker, 0);
      ASSERT_LT(worker, 4);
      runs[static_cast<size_t>(task)].fetch_add(1, std::memory_order_relaxed);
    });
    for (int task = 0; task < 64; ++task) {
      ASSERT_EQ(runs[static_cast<size_t>(task)].load(), task < tasks ? 1 : 0)
          << "loop " << loop << ", task " << task;
    }
  }
}

// Every worker index belongs to one thread at a time: that is what scratch memory relies on.
TEST(ThreadPool, WorkersDoNotOverlap) {
  ThreadPool pool(3);
  std::vector<std::atomic<bool>> busy(3);
  std::atomic<bool> overlap{false};
  for (int loop = 0; loop < 300; ++loop) {
    pool.ParallelFor(20, [&](int, int worker) {
      if (busy[static_cast<size_t>(worker)].exchange(true)) overlap = true;
      std::this_thread::yield();
      busy[static_cast<size_t>(worker)].store(false);
    });
  }
  EXPECT_FALSE(overlap);
}

TEST(ThreadPool, HelpersTakePart) {
  ThreadPool pool(2);
  // The caller's task waits for the other one, which only a helper can run.
  std::atomic<int> started{0};
  pool.ParallelFor(2, [&](int, int) {
    started.fetch_add(1);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (started.load() < 2 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(started.load(), 2);
}

TEST(ThreadPool, IdlePoolUsesNoProcessorTime) {
  ThreadPool pool(4);
  pool.ParallelFor(8, [](int, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // beyond the spin
  const double before = ProcessCpuSeconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(ProcessCpuSeconds() - before, 0.03);
}

// What helpers yield does not slow down the thread that owns the pool.
TEST(ThreadPool, HelpersTakeTheirNicenessAndTheCallerKeepsItsOwn) {
  ThreadPool pool(2, /*niceness=*/7);
  const int own = getpriority(PRIO_PROCESS, 0);
  std::atomic<int> started{0};
  int seen[2] = {-1, -1};
  pool.ParallelFor(2, [&](int, int worker) {
    started.fetch_add(1);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (started.load() < 2 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    seen[worker] = getpriority(PRIO_PROCESS, 0);
  });
  EXPECT_EQ(seen[0], own);
  EXPECT_EQ(seen[1], 7);
}

TEST(ThreadPool, OneThreadRunsInline) {
  ThreadPool pool(1);
  const std::thread::id caller = std::this_thread::get_id();
  int runs = 0;
  pool.ParallelFor(3, [&](int, int worker) {
    EXPECT_EQ(worker, 0);
    EXPECT_EQ(std::this_thread::get_id(), caller);
    ++runs;
  });
  EXPECT_EQ(runs, 3);
}

}  // namespace
}  // namespace sluice
