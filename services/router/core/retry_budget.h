// How many requests may start anew at the same time: a share of the running ones. When a worker
// dies, its requests do not fall upon the others all at once; they take their places in the order
// in which they asked. A place is held from the new plan to its first token. Owned by RouterCore;
// not thread-safe.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>

#include "absl/container/flat_hash_set.h"
#include "common/ids.h"

namespace sluice::router {

class RetryBudget {
 public:
  // `share` of the running requests, rounded up; at least one.
  explicit RetryBudget(double share) : share_(share) {}

  // True: the request has a place, now or before. False: it stands in line.
  bool Acquire(RequestId id, int num_running);
  // Gives back the place, or leaves the line. Idempotent.
  void Release(RequestId id);
  // The next in line, which has a place now; nullopt when all places are taken or nobody waits.
  std::optional<RequestId> TakeNext(int num_running);

  size_t num_places_taken() const { return holders_.size(); }
  size_t num_waiting() const { return waiting_.size(); }

 private:
  bool HasRoom(int num_running) const;

  const double share_;
  absl::flat_hash_set<RequestId> holders_;
  absl::flat_hash_set<RequestId> waiting_;
  std::deque<RequestId> line_;  // the same, in order
};

}  // namespace sluice::router
