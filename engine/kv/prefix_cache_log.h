// What entered and left the prefix index since the last Take, for the router's affinity. Opposite
// changes cancel out, so the log is bounded without dropping anything: at most as many additions as
// blocks are indexed now, and as many removals as were indexed at the last Take.
// Owner: the block manager; engine thread only.
#pragma once

#include <algorithm>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "common/block_hash.h"

namespace sluice {

struct PrefixCacheChanges {
  std::vector<BlockHash> added;    // ascending, so that equal histories give equal reports
  std::vector<BlockHash> removed;  // ascending
};

class PrefixCacheLog {
 public:
  void Add(const BlockHash& hash) {
    if (removed_.erase(hash) == 0) added_.insert(hash);
  }
  void Remove(const BlockHash& hash) {
    if (added_.erase(hash) == 0) removed_.insert(hash);
  }
  PrefixCacheChanges Take() {
    PrefixCacheChanges changes;
    changes.added.assign(added_.begin(), added_.end());
    changes.removed.assign(removed_.begin(), removed_.end());
    std::sort(changes.added.begin(), changes.added.end());
    std::sort(changes.removed.begin(), changes.removed.end());
    added_.clear();
    removed_.clear();
    return changes;
  }
  size_t size() const { return added_.size() + removed_.size(); }

 private:
  absl::flat_hash_set<BlockHash> added_;
  absl::flat_hash_set<BlockHash> removed_;
};

}  // namespace sluice
