#include "services/router/core/retry_budget.h"

#include <algorithm>
#include <cmath>

namespace sluice::router {

bool RetryBudget::HasRoom(int num_running, absl::Time now) {
  while (!expiries_.empty() && expiries_.begin()->first <= now) expiries_.erase(expiries_.begin());
  const double places = std::max(1.0, std::ceil(share_ * num_running));
  return static_cast<double>(expiries_.size()) < places;
}

void RetryBudget::Take(RequestId id, absl::Time now) {
  holders_[id] = now + max_hold_;
  expiries_.insert({now + max_hold_, id});
}

bool RetryBudget::Acquire(RequestId id, int num_running, absl::Time now) {
  if (holders_.contains(id)) return true;
  if (waiting_.contains(id)) return false;
  if (waiting_.empty() && HasRoom(num_running, now)) {
    Take(id, now);
    return true;
  }
  waiting_.insert(id);
  line_.push_back(id);
  return false;
}

void RetryBudget::Release(RequestId id) {
  if (const auto it = holders_.find(id); it != holders_.end()) {
    expiries_.erase({it->second, id});
    holders_.erase(it);
  }
  if (waiting_.erase(id) > 0) line_.erase(std::find(line_.begin(), line_.end(), id));
}

std::optional<RequestId> RetryBudget::TakeNext(int num_running, absl::Time now) {
  if (line_.empty() || !HasRoom(num_running, now)) return std::nullopt;
  const RequestId id = line_.front();
  line_.pop_front();
  waiting_.erase(id);
  Take(id, now);
  return id;
}

absl::Time RetryBudget::NextChange() const {
  return line_.empty() || expiries_.empty() ? absl::InfiniteFuture() : expiries_.begin()->first;
}

}  // namespace sluice::router
