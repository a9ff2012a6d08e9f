// Which worker has which KV blocks in its prefix cache, as far as the workers have told: the basis
// of prefix affinity. A hint, never a promise: a wrong entry costs time, not correctness. Bounded
// per worker. Owned by the core; no threads.
#pragma once

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "common/block_hash.h"
#include "services/router/core/messages.h"

namespace sluice::router {

class PrefixIndex {
 public:
  explicit PrefixIndex(int max_blocks_per_worker) : max_blocks_per_worker_(max_blocks_per_worker) {}

  // A full worker's further blocks are not remembered until others are removed.
  void Update(SessionId worker, absl::Span<const BlockHash> added,
              absl::Span<const BlockHash> removed);
  void Forget(SessionId worker) { blocks_.erase(worker); }

  // How many blocks at the front of `chain` the worker has. A chain hash covers everything before
  // it, so the first miss ends the match.
  int MatchedBlocks(SessionId worker, absl::Span<const BlockHash> chain) const;

  size_t num_blocks(SessionId worker) const;

 private:
  const size_t max_blocks_per_worker_;
  absl::flat_hash_map<SessionId, absl::flat_hash_set<BlockHash>> blocks_;
};

}  // namespace sluice::router
