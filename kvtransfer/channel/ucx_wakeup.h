// How the thread of a UCX channel sleeps: on UCX's descriptor and on one for Wake. Owned by the
// channel; its thread, but for Wake.
//
// UCX is asked to watch for arrivals only. What it has to send while a peer's queue is full needs
// progress and announces nothing, so with operations pending the sleeps are short. A short look
// goes before the first, and before one that UCX refuses to be armed for: it progresses the worker,
// so UCX may call back from Wait.
#pragma once

#include <ucp/api/ucp.h>

#include <atomic>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace sluice {

class UcxWakeup {
 public:
  UcxWakeup() = default;
  ~UcxWakeup();
  UcxWakeup(const UcxWakeup&) = delete;
  UcxWakeup& operator=(const UcxWakeup&) = delete;

  absl::Status Init();
  void Wake();  // any thread

  // After a progress that moved something.
  void OnMoved() { idle_rounds_ = num_false_alarms_ = 0; }
  // Sleeps until something arrives, Wake() is called or `timeout` passes. To be called when a
  // progress has moved nothing. `event_fd` is the worker's.
  void Wait(ucp_worker_h worker, int event_fd, bool operations_pending, absl::Duration timeout);
  // For how long UCX has said, whenever asked, that something lies there, and could not take it.
  // Over shared memory that is a message whose sender stopped or died while writing it: it holds up
  // all behind it.
  absl::Duration BlockedFor(absl::Time now) const;
  void OnNewWorker() { num_refusals_ = 0; }

 private:
  // Looks again and again for `look_time_`. True: a progress has moved something.
  bool LookBriefly(ucp_worker_h worker);

  int wake_fd_ = -1;
  std::atomic<bool> woken_{false};  // a look ends early
  absl::Duration look_time_ =
      absl::Microseconds(10);  // grows while looking helps, shrinks while it does not
  int idle_rounds_ = 0;
  int num_refusals_ = 0;      // to arm, in a row
  int num_false_alarms_ = 0;  // of UCX's descriptor, in a row
  absl::Time blocked_since_;
};

}  // namespace sluice
