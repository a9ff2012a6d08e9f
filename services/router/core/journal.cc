#include "services/router/core/journal.h"

#include <utility>

#include "services/router/core/mutants.h"

namespace sluice::router {

Journal::Outcome Journal::Take(int index, SampledToken token, TokenList* ready) {
  const int next = size();
  if (Planted(RouterMutant::kIgnoreTokenIndex)) index = next;
  if (index < next || held_.contains(index)) return Outcome::kDuplicate;
  if (index > next) {
    if (index - next > max_held_tokens_) return Outcome::kTooFar;
    held_.emplace(index, std::move(token));
    return Outcome::kHeld;
  }
  tokens_.push_back(token.token);
  ready->push_back(std::move(token));
  for (auto it = held_.begin(); it != held_.end() && it->first == size(); it = held_.erase(it)) {
    tokens_.push_back(it->second.token);
    ready->push_back(std::move(it->second));
  }
  return Outcome::kEmitted;
}

}  // namespace sluice::router
