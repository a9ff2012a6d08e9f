#include "engine/device/thread_pool.h"

#include <algorithm>
#include <chrono>

#include "common/niceness.h"

namespace sluice {
namespace {

constexpr int kIndexBits = 20;
constexpr uint64_t kIndexMask = (uint64_t{1} << kIndexBits) - 1;
constexpr std::chrono::microseconds kSpin{20};

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as `done()`; false after kSpin.
template <typename Done>
bool SpinUntil(Done done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, int niceness) {
  for (int worker = 1; worker < num_threads; ++worker) {
    helpers_.emplace_back([this, worker, niceness] {
      SetNicenessOfThisThread(niceness);
      HelperLoop(worker);
    });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  signal_.fetch_add(1);
  signal_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadPool::ParallelFor(int num_tasks, Fn fn) {
  if (num_tasks <= 1 || helpers_.empty()) {
    for (int task = 0; task < num_tasks; ++task) fn(task, 0);
    return;
  }
  fn_.store(&fn, std::memory_order_relaxed);
  unfinished_.store(num_tasks, std::memory_order_relaxed);
  ++loop_number_;
  ticket_.store((loop_number_ << (2 * kIndexBits)) |
                (static_cast<uint64_t>(num_tasks) << kIndexBits));  // sequentially consistent
  signal_.fetch_add(1);
  if (sleepers_.load() > 0) signal_.notify_all();

  RunTasks(/*worker=*/0);
  if (SpinUntil([&] { return unfinished_.load(std::memory_order_acquire) == 0; })) return;
  for (int32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) {
    unfinished_.wait(left, std::memory_order_acquire);
  }
}

bool ThreadPool::RunTasks(int worker) {
  bool ran = false;
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while ((ticket & kIndexMask) < ((ticket >> kIndexBits) & kIndexMask)) {
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    // The claimed task is unfinished, so the owner cannot leave this loop: fn_ belongs to it.
    (*fn_.load(std::memory_order_relaxed))(static_cast<int>(ticket & kIndexMask), worker);
    ran = true;
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1 && worker != 0) {
      unfinished_.notify_one();
    }
    ticket = ticket_.load(std::memory_order_acquire);
  }
  return ran;
}

void ThreadPool::HelperLoop(int worker) {
  while (true) {
    // Read before `stop_`: the destructor sets stop_ first and then raises the signal.
    const uint32_t seen = signal_.load();
    if (stop_.load()) return;
    if (RunTasks(worker)) continue;
    if (SpinUntil([&] { return signal_.load(std::memory_order_relaxed) != seen; })) continue;
    sleepers_.fetch_add(1);
    signal_.wait(seen);  // returns at once if the signal has moved on
    sleepers_.fetch_sub(1);
  }
}

}  // namespace sluice
