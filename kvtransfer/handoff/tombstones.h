// Closed transfers of a decode worker, remembered so that stragglers get the right answer: a lost
// Commit is repeated, everything else is refused. Bounded: the oldest are forgotten first (then the
// answer is UNKNOWN, which ends the sender as well). One owner, one thread.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "common/ids.h"
#include "kvtransfer/handoff/messages.h"

namespace sluice::handoff {

struct Tombstone {
  RequestId request;
  Attempt attempt;
  bool committed = false;
};

class Tombstones {
 public:
  explicit Tombstones(size_t capacity) : capacity_(capacity) {}

  void Add(const TransferId& transfer, const Tombstone& tombstone);
  const Tombstone* Find(const TransferId& transfer) const;
  // The highest closed attempt of a request, if one is remembered.
  std::optional<Attempt> LastAttempt(const RequestId& request) const;

  size_t size() const { return order_.size(); }

 private:
  void ForgetOldest();

  const size_t capacity_;
  std::deque<TransferId> order_;  // oldest first
  absl::flat_hash_map<TransferId, Tombstone> by_transfer_;
  absl::flat_hash_map<RequestId, Attempt> last_attempt_;
};

// What a straggler about a closed transfer is told, if anything.
std::optional<Body> AnswerForClosed(const Tombstone& tombstone, const Body& message);

}  // namespace sluice::handoff
