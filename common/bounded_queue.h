// A bounded queue between threads: any thread pushes, one thread takes. Full means refused, never
// blocked, so the pusher decides what to shed. All methods are thread-safe.
#pragma once

#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/monotonic_cond_var.h"

namespace sluice {

template <typename T>
class BoundedQueue {
 public:
  // `on_push` (optional) runs after each successful push, without the lock: it wakes a consumer
  // that sleeps on something else than this queue (an eventfd, a UCX worker). It must not block.
  explicit BoundedQueue(size_t capacity, std::function<void()> on_push = nullptr)
      : capacity_(capacity), on_push_(std::move(on_push)) {}

  BoundedQueue(const BoundedQueue&) = delete;
  BoundedQueue& operator=(const BoundedQueue&) = delete;

  // False when the queue is full or closed; `item` is then dropped.
  [[nodiscard]] bool TryPush(T item) {
    {
      absl::MutexLock lock(&mu_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
    }
    ready_.SignalAll();
    if (on_push_) on_push_();
    return true;
  }

  // Everything queued now, perhaps nothing. Never waits.
  std::vector<T> TakeAll() {
    absl::MutexLock lock(&mu_);
    return TakeAllLocked();
  }

  // Waits until something is queued, the queue is closed, or `timeout` has passed.
  std::vector<T> WaitAndTakeAll(absl::Duration timeout) {
    absl::MutexLock lock(&mu_);
    ready_.Await(&mu_, absl::Condition(this, &BoundedQueue::ReadyLocked), timeout);
    return TakeAllLocked();
  }

  // Later pushes are refused; what is queued can still be taken.
  void Close() {
    absl::MutexLock lock(&mu_);
    closed_ = true;
    ready_.SignalAll();
  }

  size_t size() const {
    absl::MutexLock lock(&mu_);
    return items_.size();
  }
  size_t capacity() const { return capacity_; }

 private:
  bool ReadyLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return closed_ || !items_.empty(); }

  std::vector<T> TakeAllLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    std::vector<T> taken(std::make_move_iterator(items_.begin()),
                         std::make_move_iterator(items_.end()));
    items_.clear();
    return taken;
  }

  // Constant after construction.
  const size_t capacity_;
  const std::function<void()> on_push_;

  mutable absl::Mutex mu_;
  MonotonicCondVar ready_;
  std::deque<T> items_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace sluice
