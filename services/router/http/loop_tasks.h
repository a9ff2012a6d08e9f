// Tasks from other threads for one event loop. However many come while the loop is busy, it is
// woken once for all of them: a step's tokens go to hundreds of connections. Bounded by who posts:
// each running request has at most one task here.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"

namespace sluice::router {

template <typename Task>  // callable, without arguments
class LoopTasks {
 public:
  // `loop` is run by one thread. This outlives whatever was posted.
  explicit LoopTasks(boost::asio::io_context* loop) : loop_(loop) {}
  LoopTasks(const LoopTasks&) = delete;
  LoopTasks& operator=(const LoopTasks&) = delete;

  // Runs `task` on the loop's thread, after those posted before. Any thread.
  void Post(Task task) {
    {
      absl::MutexLock lock(&mu_);
      tasks_.push_back(std::move(task));
      if (std::exchange(run_posted_, true)) return;
    }
    boost::asio::post(*loop_, [this] { Run(); });
  }

 private:
  void Run() {
    {
      absl::MutexLock lock(&mu_);
      running_.swap(tasks_);
      run_posted_ = false;
    }
    for (const Task& task : running_) task();
    running_.clear();
  }

  boost::asio::io_context* const loop_;
  std::vector<Task> running_;  // the loop's thread only

  absl::Mutex mu_;
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mu_);
  bool run_posted_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace sluice::router
