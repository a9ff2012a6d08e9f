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

bool RetryBudget::Acquire(RequestId id, bool mid_answer, int num_running, absl::Time now) {
  if (holders_.contains(id)) return true;
  if (waiting_.contains(id)) return false;
  if (waiting_.empty() && HasRoom(num_running, now)) {
    Take(id, now);
    return true;
  }
  waiting_.insert(id);
  (mid_answer ? mid_answer_line_ : beginning_line_).push_back(id);
  return false;
}

void RetryBudget::Release(RequestId id) {
  if (const auto it = holders_.find(id); it != holders_.end()) {
    expiries_.erase({it->second, id});
    holders_.erase(it);
  }
  if (waiting_.erase(id) > 0) {
    std::erase(mid_answer_line_, id);
    std::erase(beginning_line_, id);
  }
}

std::optional<RequestId> RetryBudget::TakeNext(int num_running, absl::Time now) {
  if (waiting_.empty() || !HasRoom(num_running, now)) return std::nullopt;
  std::deque<RequestId>& line = mid_answer_line_.empty() ? beginning_line_ : mid_answer_line_;
  const RequestId id = line.front();
  line.pop_front();
  waiting_.erase(id);
  Take(id, now);
  return id;
}

absl::Time RetryBudget::NextChange() const {
  return waiting_.empty() || expiries_.empty() ? absl::InfiniteFuture() : expiries_.begin()->first;
}

}  // namespace sluice::router
