// A fixed number of threads over one bounded queue. With one thread it is a serial executor: tasks
// run in the order they were posted. Any thread may post.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"

namespace sluice::router {

class TaskPool {
 public:
  // REQUIRES: num_threads >= 1. `name` (at most 15 characters) is shown by the operating system.
  TaskPool(const std::string& name, int num_threads, size_t max_queued_tasks);
  // Runs what is queued, then joins. REQUIRES: not called on one of its own threads.
  ~TaskPool();

  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // False when the queue is full or the pool is stopping; the task is then dropped.
  [[nodiscard]] bool Post(std::function<void()> task);

 private:
  void RunThread();
  bool RunnableLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || !tasks_.empty();
  }

  const size_t max_queued_tasks_;

  absl::Mutex mu_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace sluice::router
