#include "kvtransfer/handoff/tombstones.h"

#include <variant>

#include "kvtransfer/handoff/mutants.h"

namespace sluice::handoff {

void Tombstones::Add(const TransferId& transfer, const Tombstone& tombstone) {
  if (capacity_ == 0 || !by_transfer_.emplace(transfer, tombstone).second) return;
  order_.push_back(transfer);
  Attempt& last = last_attempt_[tombstone.request];
  if (last < tombstone.attempt) last = tombstone.attempt;
  while (order_.size() > capacity_) ForgetOldest();
}

const Tombstone* Tombstones::Find(const TransferId& transfer) const {
  auto it = by_transfer_.find(transfer);
  return it == by_transfer_.end() ? nullptr : &it->second;
}

std::optional<Attempt> Tombstones::LastAttempt(const RequestId& request) const {
  auto it = last_attempt_.find(request);
  if (it == last_attempt_.end()) return std::nullopt;
  return it->second;
}

void Tombstones::ForgetOldest() {
  auto it = by_transfer_.find(order_.front());
  auto last = last_attempt_.find(it->second.request);
  if (last != last_attempt_.end() && last->second == it->second.attempt) last_attempt_.erase(last);
  by_transfer_.erase(it);
  order_.pop_front();
}

std::optional<Body> AnswerForClosed(const Tombstone& tombstone, const Body& message) {
  if (std::holds_alternative<Cancel>(message)) return CancelAck{Side::kSender};
  if (std::holds_alternative<Bind>(message) || std::holds_alternative<Offer>(message) ||
      std::holds_alternative<Final>(message)) {
    if (tombstone.committed && !Planted(HandoffMutant::kForgetCommit)) return Commit{};
    return Nack{NackCode::kExpired};
  }
  return std::nullopt;
}

}  // namespace sluice::handoff
