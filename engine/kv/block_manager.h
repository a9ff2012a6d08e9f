// Host bookkeeping of one worker's pool of KV blocks: who references a block, which full blocks can
// be reused as somebody's prefix, and which go first when space is needed. Knows ids and hashes
// only, never bytes or devices. Owner: the scheduler; engine thread only.
//
// A block is in exactly one state, and every change of state goes through one function, so
//   free + cached + active + receiving + sending + quarantined == total   holds at all times.
//
// clang-format off
//   free         nobody references it, its content means nothing
//   cached       nobody references it, its content is a full block named by a hash; evictable (LRU)
//   active       in the block table of at least one sequence
//   receiving    a reservation's, being filled from outside; exclusive
//   sending      in a table whose sequence waits for its receiver; the transfer thread may read it
//   quarantined  was receiving, the transfer is dead, but a write may still land; exclusive
// clang-format on
//
// `active` and `sending` references are shared (a prefix in many tables); a block with both counts
// as sending. Only full blocks are ever shared, and a shared block is never written, so nothing is
// copied.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/block_hash.h"
#include "common/ids.h"
#include "engine/kv/prefix_cache_log.h"

namespace sluice {

struct BlockCounts {
  int64_t total = 0, free = 0, cached = 0, active = 0, receiving = 0, sending = 0, quarantined = 0;
  bool Balanced() const {
    return free + cached + active + receiving + sending + quarantined == total;
  }
};

enum class BlockState : uint8_t { kFree, kCached, kActive, kReceiving, kSending, kQuarantined };

// The kind of one reference.
enum class BlockUse : uint8_t { kActive, kReceiving, kSending, kQuarantined };

class BlockManager {
 public:
  // REQUIRES: 0 < num_blocks < 2^31. Without the prefix cache nothing is ever found or kept.
  BlockManager(int64_t num_blocks, bool enable_prefix_cache);
  BlockManager(const BlockManager&) = delete;
  BlockManager& operator=(const BlockManager&) = delete;

  // Appends `count` private blocks to *table with one reference each; free blocks first, then the
  // least recently used cached ones. False (and nothing changed) when there are not enough.
  // REQUIRES: use is kActive or kReceiving.
  [[nodiscard]] bool Allocate(int64_t count, BlockUse use, std::vector<BlockId>* table);
  // free + cached: what Allocate can deliver now.
  int64_t num_allocatable() const { return counts_.free + counts_.cached; }

  struct PrefixMatch {
    int64_t num_blocks = 0;  // leading blocks of the chain that are here
    int64_t num_cached = 0;  // of these, unreferenced ones: taking them lowers num_allocatable()
  };
  PrefixMatch MatchPrefix(absl::Span<const BlockHash> chain) const;
  // Appends the blocks of `chain` to *table with one active reference each.
  // REQUIRES: all are here (MatchPrefix, with no Allocate since).
  void AcquirePrefix(absl::Span<const BlockHash> chain, std::vector<BlockId>* table);

  // `block` is full and its KV is complete: it can be found by `hash` from now on. When another
  // block already bears the hash, this one stays private and becomes free with its last reference.
  // REQUIRES: block is active or sending.
  void Publish(BlockId block, const BlockHash& hash);

  // Adds one sending reference to each block. REQUIRES: all are active or sending.
  void Lend(absl::Span<const BlockId> blocks);
  // Turns one reference of each block from one kind into another.
  void ChangeUse(absl::Span<const BlockId> blocks, BlockUse from, BlockUse to);
  // Gives one reference of each block back. The last one makes it cached (if published) or free;
  // the end of a chain becomes evictable before its beginning, on which more sequences can build.
  void Release(absl::Span<const BlockId> blocks, BlockUse use);

  const BlockCounts& counts() const { return counts_; }
  int64_t num_blocks() const { return counts_.total; }
  BlockState state(BlockId block) const { return Get(block).state; }
  // References of any kind.
  int64_t num_references(BlockId block) const;
  bool is_published(BlockId block) const { return Get(block).published; }
  int64_t num_evictions() const { return num_evictions_; }

  PrefixCacheChanges TakePrefixCacheChanges() { return log_.Take(); }

  // Recomputes everything that is kept incrementally. O(num_blocks); for tests and debugging.
  absl::Status CheckIntegrity() const;

 private:
  static constexpr int32_t kNone = -1;

  struct Block {
    BlockHash hash;  // meaningful while published
    int32_t num_active = 0;
    int32_t num_sending = 0;
    int32_t lru_previous = kNone;  // towards the least recently used; meaningful while cached
    int32_t lru_next = kNone;
    BlockState state = BlockState::kFree;
    bool published = false;
  };

  const Block& Get(BlockId id) const;
  Block& Get(BlockId id);
  int64_t& Count(BlockState state);

  void AddReference(BlockId id, BlockUse use);
  void DropReference(BlockId id, BlockUse use);
  // Moves the block to the state that its references and publication imply.
  void SettleShared(BlockId id);
  // The one place where a state changes: counts, free list and LRU list follow it.
  void SetState(BlockId id, BlockState state);
  void Evict(BlockId id);
  void LruAppend(BlockId id);
  void LruRemove(BlockId id);

  const bool enable_prefix_cache_;
  std::vector<Block> blocks_;
  std::vector<BlockId>
      free_;  // a stack: the block used last is still warm in the processor's cache
  int32_t lru_oldest_ = kNone;
  int32_t lru_newest_ = kNone;
  absl::flat_hash_map<BlockHash, BlockId> index_;
  PrefixCacheLog log_;
  BlockCounts counts_;
  int64_t num_evictions_ = 0;
};

}  // namespace sluice
