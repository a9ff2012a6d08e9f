// A fixed number of threads over one bounded queue. With one thread it is a serial executor: tasks
// run in the order they were posted. Any thread may post.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"

namespace sluice::router {

class TaskPool {
 public:
  // REQUIRES: num_threads >= 1. `name` (at most 15 characters) is shown by the operating system.
  // `max_queued_bytes` bounds what all tasks that wait hold together; one alone may hold more.
  TaskPool(const std::string& name, int num_threads, size_t max_queued_tasks,
           int64_t max_queued_bytes = std::numeric_limits<int64_t>::max());
  // Runs what is queued, then joins. REQUIRES: not called on one of its own threads.
  ~TaskPool();

  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // False when the queue is full or the pool is stopping; the task is then dropped. `bytes`: what
  // it holds beside itself.
  [[nodiscard]] bool Post(std::function<void()> task, int64_t bytes = 0);

 private:
  struct Task {
    std::function<void()> run;
    int64_t bytes = 0;
  };

  void RunThread();
  bool RunnableLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || !tasks_.empty();
  }

  const size_t max_queued_tasks_;
  const int64_t max_queued_bytes_;

  absl::Mutex mu_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mu_);
  int64_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of tasks_
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace sluice::router
