// How many requests may start anew at the same time: a share of the running ones. When a worker
// dies, its requests do not fall upon the others all at once; they take their places in the order
// in which they asked, but answers whose clients have tokens already go before those that have yet
// to begin. A place is held from the new plan to its first token, but no longer than max_hold, so
// that those who wait for a slow worker do not stop everybody else. Owned by RouterCore; not
// thread-safe.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace sluice::router {

class RetryBudget {
 public:
  // `share` of the running requests, rounded up; at least one.
  RetryBudget(double share, absl::Duration max_hold) : share_(share), max_hold_(max_hold) {}

  // True: the request may go on; it has a place, or had one and kept it for as long as it may.
  // False: it stands in line. `mid_answer`: its client has tokens.
  bool Acquire(RequestId id, bool mid_answer, int num_running, absl::Time now);
  // Gives back the place, or leaves the line. Idempotent.
  void Release(RequestId id);
  // The next in line, which has a place now; nullopt when all places are taken or nobody waits.
  std::optional<RequestId> TakeNext(int num_running, absl::Time now);
  // When a place becomes free by itself for somebody who waits; InfiniteFuture: never.
  absl::Time NextChange() const;

  size_t num_places_taken() const { return expiries_.size(); }
  size_t num_waiting() const { return waiting_.size(); }

 private:
  bool HasRoom(int num_running, absl::Time now);
  void Take(RequestId id, absl::Time now);

  const double share_;
  const absl::Duration max_hold_;
  absl::flat_hash_map<RequestId, absl::Time> holders_;  // when their places are free, or were
  absl::btree_set<std::pair<absl::Time, RequestId>> expiries_;  // of the places that are taken
  absl::flat_hash_set<RequestId> waiting_;
  std::deque<RequestId> mid_answer_line_, beginning_line_;  // the same, in order
};

}  // namespace sluice::router
