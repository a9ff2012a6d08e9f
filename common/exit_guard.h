// Ends a server that can neither go on nor end by itself, so that whoever supervises it starts
// another and its peers learn of it at once: a process that hangs but lives keeps its requests, its
// memory and its connections. Owned by main; a thread of its own that wakes every `interval`.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/monotonic_cond_var.h"

namespace sluice {

struct ExitGuardOptions {
  // "" while the process makes progress, else why only a restart helps. Must not wait.
  std::function<std::string()> hang_reason;
  absl::Duration interval = absl::Seconds(10);
  // The process leaves, with status 1, when hang_reason gives one this many times in a row: four
  // minutes for a supervisor to look at it first. One that was suspended for hours and goes on has
  // as long.
  int num_looks = 24;
};

class ExitGuard {
 public:
  explicit ExitGuard(ExitGuardOptions options);
  ~ExitGuard();  // the process is left alone
  ExitGuard(const ExitGuard&) = delete;
  ExitGuard& operator=(const ExitGuard&) = delete;

  // From now on only the end matters: the process leaves, with status 1, unless this object has
  // been destroyed `limit` from now. Any thread; once.
  void LeaveWithin(absl::Duration limit);

 private:
  void Run();

  const ExitGuardOptions options_;
  absl::Mutex mu_;
  MonotonicCondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time leave_at_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  absl::Duration limit_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace sluice
