#include "kvtransfer/channel/ucx_wakeup.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/clock.h"

namespace sluice {
namespace {

// How long a waiting side looks again before it sleeps. A peer on another core drains its queue in
// less; a peer that waits for this very core can do nothing meanwhile.
constexpr absl::Duration kShortestLook = absl::Microseconds(10);
constexpr absl::Duration kLongestLook = absl::Microseconds(160);
constexpr int kProgressPerLook = 16;  // reading the clock costs about as much as a progress
// Shorter pauses would be none: on a virtual machine setting a timer takes up to 30 us, and if it
// goes off before this thread is off the core, the peer has not run.
constexpr absl::Duration kShortestPause = absl::Microseconds(50);
constexpr absl::Duration kLongestPause = absl::Milliseconds(1);
constexpr int kDoublings = 5;  // of the pause, a few rounds each
constexpr int kRoundsPerPause = 8;
constexpr int kMaxIdleRounds = kRoundsPerPause * kDoublings;  // more change nothing
constexpr int kMaxFalseAlarms = 128;
constexpr absl::Duration kLongestSleep = absl::Hours(1);
// Fewer refusals prove nothing: this thread may have been starved.
constexpr int kMinRefusals = 100;

absl::Duration Pause(int idle_rounds) {
  const int doublings = std::min(idle_rounds / kRoundsPerPause, kDoublings);
  return std::min(kLongestPause, kShortestPause * (1 << doublings));
}

// Unless told otherwise, the kernel makes every sleep of a thread up to 50 us longer.
void LetThisThreadSleepBriefly() {
  thread_local bool is_told = false;
  if (!std::exchange(is_told, true)) prctl(PR_SET_TIMERSLACK, 1000UL);
}

}  // namespace

UcxWakeup::~UcxWakeup() {
  if (wake_fd_ >= 0) close(wake_fd_);
}

absl::Status UcxWakeup::Init() {
  wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  return wake_fd_ < 0 ? absl::ResourceExhaustedError("out of descriptors") : absl::OkStatus();
}

void UcxWakeup::Wake() {
  woken_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(wake_fd_, &one, sizeof(one));
}

void UcxWakeup::Wait(ucp_worker_h worker, int event_fd, bool operations_pending,
                     absl::Duration timeout) {
  // Arming costs several system calls, so it is for those who mean to sleep.
  if (operations_pending && idle_rounds_ == 0 && LookBriefly(worker)) return;
  // UCX's descriptor is only good after a successful arm. Over shared memory the first one after an
  // arrival is refused whatever lies there, because a signal is left over, which it takes away.
  bool armed = ucp_worker_arm(worker) == UCS_OK;
  const bool nothing_lies_there = armed || ucp_worker_arm(worker) == UCS_OK;
  // With operations pending much more may come at once: better a pause, and all of it together,
  // than to be woken by the first part.
  if (!operations_pending) armed = nothing_lies_there;
  if (nothing_lies_there) {
    num_refusals_ = 0;
  } else if (num_refusals_++ == 0) {
    blocked_since_ = MonotonicNow();
  }
  if (!armed && !operations_pending && idle_rounds_ == 0 && LookBriefly(worker)) return;
  // Over TCP, UCX watches for room to write on a connection whose peer has not answered yet, and
  // there is always room: until it answers, the descriptor tells nothing.
  const bool telling = armed && num_false_alarms_ <= kMaxFalseAlarms;
  if (!telling || operations_pending) {
    idle_rounds_ = std::min(idle_rounds_ + 1, kMaxIdleRounds);
    timeout = std::min(timeout, Pause(idle_rounds_));
    LetThisThreadSleepBriefly();
  }
  const timespec limit = absl::ToTimespec(std::clamp(timeout, absl::ZeroDuration(), kLongestSleep));
  pollfd ready[2] = {{wake_fd_, POLLIN, 0}, {event_fd, POLLIN, 0}};
  if (ppoll(ready, telling ? 2 : 1, &limit, nullptr) <= 0) return;
  if (telling && ready[1].revents != 0) ++num_false_alarms_;
  if (ready[0].revents == 0) return;
  idle_rounds_ = 0;  // something new begins
  uint64_t count;
  [[maybe_unused]] ssize_t read_bytes = read(wake_fd_, &count, sizeof(count));
  woken_ = false;  // after the read: a Wake in between would leave it set with nothing to read
}

bool UcxWakeup::LookBriefly(ucp_worker_h worker) {
  const absl::Time until = MonotonicNow() + look_time_;
  do {
    for (int i = 0; i < kProgressPerLook; ++i) {
      if (ucp_worker_progress(worker) == 0) continue;
      look_time_ = std::min(look_time_ * 2, kLongestLook);
      OnMoved();
      return true;
    }
    if (woken_) return false;
  } while (MonotonicNow() < until);
  look_time_ = std::max(look_time_ / 2, kShortestLook);
  return false;
}

absl::Duration UcxWakeup::BlockedFor(absl::Time now) const {
  return num_refusals_ < kMinRefusals ? absl::ZeroDuration() : now - blocked_since_;
}

}  // namespace sluice
