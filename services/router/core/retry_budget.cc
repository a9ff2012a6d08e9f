#include "services/router/core/retry_budget.h"

#include <algorithm>
#include <cmath>

namespace sluice::router {

bool RetryBudget::HasRoom(int num_running) const {
  const double places = std::max(1.0, std::ceil(share_ * num_running));
  return static_cast<double>(holders_.size()) < places;
}

bool RetryBudget::Acquire(RequestId id, int num_running) {
  if (holders_.contains(id)) return true;
  if (waiting_.contains(id)) return false;
  if (waiting_.empty() && HasRoom(num_running)) {
    holders_.insert(id);
    return true;
  }
  waiting_.insert(id);
  line_.push_back(id);
  return false;
}

void RetryBudget::Release(RequestId id) {
  holders_.erase(id);
  if (waiting_.erase(id) > 0) line_.erase(std::find(line_.begin(), line_.end(), id));
}

std::optional<RequestId> RetryBudget::TakeNext(int num_running) {
  if (line_.empty() || !HasRoom(num_running)) return std::nullopt;
  const RequestId id = line_.front();
  line_.pop_front();
  waiting_.erase(id);
  holders_.insert(id);
  return id;
}

}  // namespace sluice::router
