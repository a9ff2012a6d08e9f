#include "common/monotonic_cond_var.h"

#include <algorithm>
#include <chrono>

#include "common/clock.h"

#if defined(__GLIBCXX__) && !defined(_GLIBCXX_USE_PTHREAD_COND_CLOCKWAIT)
#error "std::condition_variable would wait by the wall clock: glibc 2.30 or newer is needed"
#endif

namespace sluice {
namespace {

constexpr absl::Duration kLongestWait = absl::Hours(1);  // an end that no clock type overflows

}  // namespace

void MonotonicCondVar::Wait(absl::Mutex* mu, absl::Duration timeout) {
  if (timeout <= absl::ZeroDuration()) return;
  const auto end =
      std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(std::min(timeout, kLongestWait));
  waiters_.fetch_add(1, std::memory_order_relaxed);
  {
    std::unique_lock<std::mutex> lock(asleep_mu_);
    mu->Unlock();
    asleep_.wait_until(lock, end);
  }
  mu->Lock();
  waiters_.fetch_sub(1, std::memory_order_relaxed);
}

bool MonotonicCondVar::Await(absl::Mutex* mu, const absl::Condition& condition,
                             absl::Duration timeout) {
  if (condition.Eval()) return true;
  const absl::Time deadline = MonotonicNow() + timeout;
  do {
    const absl::Duration left = deadline - MonotonicNow();
    if (left <= absl::ZeroDuration()) return false;
    Wait(mu, left);
  } while (!condition.Eval());
  return true;
}

void MonotonicCondVar::Notify(bool all) {
  // Whoever looked before the change has counted itself and taken asleep_mu_ before it gave up the
  // callers' mutex, under which the change was made: it is seen here, and sleeps when this gets
  // asleep_mu_.
  if (waiters_.load(std::memory_order_relaxed) == 0) return;
  { const std::lock_guard<std::mutex> lock(asleep_mu_); }
  if (all) {
    asleep_.notify_all();
  } else {
    asleep_.notify_one();
  }
}

}  // namespace sluice
