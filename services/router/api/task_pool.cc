#include "services/router/api/task_pool.h"

#include <pthread.h>

#include <utility>

namespace sluice::router {

TaskPool::TaskPool(const std::string& name, int num_threads, size_t max_queued_tasks,
                   int64_t max_queued_bytes)
    : max_queued_tasks_(max_queued_tasks), max_queued_bytes_(max_queued_bytes) {
  for (int i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this] { RunThread(); });
    pthread_setname_np(threads_.back().native_handle(), name.substr(0, 15).c_str());
  }
}

TaskPool::~TaskPool() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

bool TaskPool::Post(std::function<void()> task, int64_t bytes) {
  absl::MutexLock lock(&mu_);
  if (stopping_ || tasks_.size() >= max_queued_tasks_) return false;
  if (!tasks_.empty() && bytes > max_queued_bytes_ - queued_bytes_) return false;
  queued_bytes_ += bytes;
  tasks_.push_back({std::move(task), bytes});
  return true;
}

void TaskPool::RunThread() {
  while (true) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &TaskPool::RunnableLocked));
      if (tasks_.empty()) return;  // stopping
      task = std::move(tasks_.front().run);
      queued_bytes_ -= tasks_.front().bytes;
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace sluice::router
