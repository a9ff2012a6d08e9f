#include "services/router/core/prefix_index.h"

namespace sluice::router {

void PrefixIndex::Update(SessionId worker, absl::Span<const BlockHash> added,
                         absl::Span<const BlockHash> removed) {
  if (added.empty() && removed.empty()) return;
  absl::flat_hash_set<BlockHash>& known = blocks_[worker];
  // A block that was evicted and computed again within one report is in both lists, and is there.
  for (const BlockHash& hash : removed) known.erase(hash);
  for (const BlockHash& hash : added) {
    if (known.size() >= max_blocks_per_worker_) break;
    known.insert(hash);
  }
}

int PrefixIndex::MatchedBlocks(SessionId worker, absl::Span<const BlockHash> chain) const {
  const auto it = blocks_.find(worker);
  if (it == blocks_.end()) return 0;
  int matched = 0;
  while (matched < static_cast<int>(chain.size()) && it->second.contains(chain[matched])) ++matched;
  return matched;
}

size_t PrefixIndex::num_blocks(SessionId worker) const {
  const auto it = blocks_.find(worker);
  return it == blocks_.end() ? 0 : it->second.size();
}

}  // namespace sluice::router
