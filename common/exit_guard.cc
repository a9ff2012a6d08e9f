#include "common/exit_guard.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"

namespace sluice {
namespace {

constexpr unsigned kLogSeconds = 2;

[[noreturn]] void Leave(const std::string& why) {
  // A log that nobody reads may be what it hangs on.
  signal(SIGALRM, SIG_DFL);
  alarm(kLogSeconds);
  SLUICE_LOG(Error) << why << "; leaving";
  _exit(1);
}

}  // namespace

ExitGuard::ExitGuard(ExitGuardOptions options)
    : options_(std::move(options)), thread_([this] { Run(); }) {}

ExitGuard::~ExitGuard() {
  {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
    changed_.Signal();
  }
  thread_.join();
}

void ExitGuard::LeaveWithin(absl::Duration limit) {
  absl::MutexLock lock(&mu_);
  limit_ = limit;
  leave_at_ = MonotonicNow() + limit;
  changed_.Signal();
}

void ExitGuard::Run() {
  int num_hangs = 0;
  absl::Time next_look = MonotonicNow() + options_.interval;
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      if (stopped_) return;
      const absl::Time now = MonotonicNow();
      if (now >= leave_at_) {
        Leave(absl::StrCat("it has not ended ", absl::FormatDuration(limit_), " after its signal"));
      }
      const bool ending = leave_at_ != absl::InfiniteFuture();
      if (ending || now < next_look) {
        changed_.Wait(&mu_, (ending ? leave_at_ : next_look) - now);
        continue;
      }
    }
    const std::string reason = options_.hang_reason();
    num_hangs = reason.empty() ? 0 : num_hangs + 1;
    if (num_hangs >= options_.num_looks) Leave(reason);
    next_look = MonotonicNow() + options_.interval;
  }
}

}  // namespace sluice
