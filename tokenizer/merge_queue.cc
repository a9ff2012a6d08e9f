#include "tokenizer/merge_queue.h"

#include <algorithm>
#include <functional>

namespace sluice {

void RankMergeQueue::Push(const MergeCandidate& candidate) {
  // A rank is one pair of tokens.
  Positions& positions =
      ranks_.try_emplace(candidate.rank, Positions{candidate.left, candidate.right, {}, 0, {}})
          .first->second;
  if (positions.in_order.empty() || candidate.position >= positions.in_order.back()) {
    positions.in_order.push_back(candidate.position);
    return;
  }
  positions.late.push_back(candidate.position);
  std::push_heap(positions.late.begin(), positions.late.end(), std::greater<>());
}

MergeCandidate RankMergeQueue::Pop() {
  const auto best = ranks_.begin();
  Positions& positions = best->second;
  MergeCandidate candidate = {best->first, 0, positions.left, positions.right};
  const bool has_in_order = positions.next < positions.in_order.size();
  if (has_in_order &&
      (positions.late.empty() || positions.in_order[positions.next] <= positions.late.front())) {
    candidate.position = positions.in_order[positions.next++];
  } else {
    std::pop_heap(positions.late.begin(), positions.late.end(), std::greater<>());
    candidate.position = positions.late.back();
    positions.late.pop_back();
  }
  if (positions.next == positions.in_order.size() && positions.late.empty()) ranks_.erase(best);
  return candidate;
}

}  // namespace sluice
