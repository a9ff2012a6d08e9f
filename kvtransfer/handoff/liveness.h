// Decides by our own heartbeats whether a peer lives: UCX's word is not enough (over shared memory
// sends succeed for many seconds after the receiver was killed). Only while there are live
// transfers with the peer; otherwise it is silent and needs no timer. Sans I/O; one owner, one
// thread.
#pragma once

#include <algorithm>

#include "absl/time/time.h"

namespace sluice::handoff {

class Liveness {
 public:
  Liveness(absl::Duration heartbeat_interval, absl::Duration peer_timeout)
      : heartbeat_interval_(heartbeat_interval), peer_timeout_(peer_timeout) {}

  // A transfer with the peer begins or ends.
  void Attach(absl::Time now) {
    if (num_transfers_++ > 0) return;
    last_heard_ = now;
    next_heartbeat_ = now;
  }
  void Detach() { --num_transfers_; }

  // Any valid message of this life of the peer.
  void Heard(absl::Time now) { last_heard_ = now; }
  // We did not look for `duration`: silence during our own pause says nothing about the peer.
  void Forgive(absl::Duration duration) { last_heard_ += duration; }

  bool Dead(absl::Time now) const { return active() && now >= last_heard_ + peer_timeout_; }
  // True when a heartbeat is due; the next one is then scheduled.
  bool TakeHeartbeat(absl::Time now) {
    if (!active() || now < next_heartbeat_) return false;
    next_heartbeat_ = now + heartbeat_interval_;
    return true;
  }
  absl::Time NextDeadline() const {
    if (!active()) return absl::InfiniteFuture();
    return std::min(next_heartbeat_, last_heard_ + peer_timeout_);
  }
  bool active() const { return num_transfers_ > 0; }
  absl::Time last_heard() const { return last_heard_; }

 private:
  const absl::Duration heartbeat_interval_;
  const absl::Duration peer_timeout_;
  int num_transfers_ = 0;
  absl::Time last_heard_ = absl::InfinitePast();
  absl::Time next_heartbeat_ = absl::InfiniteFuture();
};

}  // namespace sluice::handoff
