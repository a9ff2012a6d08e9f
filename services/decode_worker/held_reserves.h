// Reserves that wait for an older attempt of their request to let go of its blocks: what that one
// had verified is then cached prefix and need not come again. Waiting is bounded in time, and in
// number by one a request. Engine thread only.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/time/time.h"
#include "services/rpc/attach_client.h"
#include "services/rpc/fleet_codec.h"

namespace sluice::worker {

struct HeldReserve {
  rpc::SessionId session;
  rpc::SequenceAttempt sequence;
  absl::Time arrived;
  absl::Time until;
};

class HeldReserves {
 public:
  // Takes the place of an older attempt that is held.
  void Hold(HeldReserve held) {
    const RequestId request = held.sequence.request;
    held_.insert_or_assign(request, std::move(held));
  }
  const HeldReserve* Find(const RequestId& request) const {
    const auto it = held_.find(request);
    return it == held_.end() ? nullptr : &it->second;
  }
  // REQUIRES: held.
  HeldReserve Take(const RequestId& request) {
    const auto it = held_.find(request);
    HeldReserve held = std::move(it->second);
    held_.erase(it);
    return held;
  }
  void DropSession(rpc::SessionId session) {
    for (auto it = held_.begin(); it != held_.end();) {
      it = it->second.session == session ? held_.erase(it) : std::next(it);
    }
  }
  std::vector<RequestId> Due(absl::Time now) const {
    std::vector<RequestId> due;
    for (const auto& [request, held] : held_) {
      if (held.until <= now) due.push_back(request);
    }
    return due;
  }
  absl::Time NextDeadline() const {
    absl::Time next = absl::InfiniteFuture();
    for (const auto& [request, held] : held_) next = std::min(next, held.until);
    return next;
  }

 private:
  absl::btree_map<RequestId, HeldReserve> held_;
};

}  // namespace sluice::worker
