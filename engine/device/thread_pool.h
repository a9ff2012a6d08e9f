// A small pool for data-parallel loops inside one step of the engine. The calling thread works too,
// and tasks are claimed one by one, so a helper that the kernel has not scheduled (two workers on
// two cores) costs nothing: the caller simply does its share. Helpers spin for at most ~20 us
// between loops and then sleep in the kernel; an idle pool uses no processor time.
//
// One thread (the owner) calls ParallelFor; it returns when all tasks are done. Which thread ran a
// task must not influence its result: `worker` is for scratch memory only.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace sluice {

class ThreadPool {
 public:
  // `num_threads` counts the caller; values below 1 mean 1. The helpers, not the caller, take
  // `niceness` (common/niceness.h).
  explicit ThreadPool(int num_threads, int niceness = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // fn(task, worker) for each task in [0, num_tasks), 0 <= worker < num_threads(); worker 0 is the
  // caller. REQUIRES: num_tasks < 2^20; no ParallelFor inside fn.
  void ParallelFor(int num_tasks, absl::FunctionRef<void(int task, int worker)> fn);

 private:
  using Fn = absl::FunctionRef<void(int, int)>;

  void HelperLoop(int worker);
  // Claims and runs tasks of the current loop until none is left. False if there was none.
  bool RunTasks(int worker);

  // One word holds (loop number : 24, number of tasks : 20, next task : 20), so that a claim by a
  // late helper can never hit another loop than the one it looked at.
  std::atomic<uint64_t> ticket_{0};
  // Valid from the ticket's publication until its last task is done.
  std::atomic<const Fn*> fn_{nullptr};
  std::atomic<int32_t> unfinished_{0};
  // Raised once a loop; helpers sleep on it.
  std::atomic<uint32_t> signal_{0};
  std::atomic<int32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  uint64_t loop_number_ = 0;  // owner only

  std::vector<std::thread> helpers_;
};

}  // namespace sluice
