#include "engine/kv/block_manager.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace sluice {
namespace {

bool IsExclusive(BlockUse use) {
  return use == BlockUse::kReceiving || use == BlockUse::kQuarantined;
}

}  // namespace

BlockManager::BlockManager(int64_t num_blocks, bool enable_prefix_cache)
    : enable_prefix_cache_(enable_prefix_cache) {
  SLUICE_CHECK(num_blocks > 0 && num_blocks < std::numeric_limits<int32_t>::max());
  blocks_.resize(static_cast<size_t>(num_blocks));
  free_.reserve(blocks_.size());
  // Popped from the back: low ids first.
  for (int64_t i = num_blocks - 1; i >= 0; --i) free_.push_back(BlockId(static_cast<int32_t>(i)));
  counts_.total = num_blocks;
  counts_.free = num_blocks;
}

bool BlockManager::Allocate(int64_t count, BlockUse use, std::vector<BlockId>* table) {
  SLUICE_CHECK(count >= 0 && (use == BlockUse::kActive || use == BlockUse::kReceiving));
  if (count > num_allocatable()) return false;
  for (int64_t i = 0; i < count; ++i) {
    if (free_.empty()) Evict(BlockId(lru_oldest_));
    const BlockId id = free_.back();
    free_.pop_back();
    AddReference(id, use);  // leaves the state free
    table->push_back(id);
  }
  return true;
}

BlockManager::PrefixMatch BlockManager::MatchPrefix(absl::Span<const BlockHash> chain) const {
  PrefixMatch match;
  for (const BlockHash& hash : chain) {
    const auto it = index_.find(hash);
    if (it == index_.end()) break;
    ++match.num_blocks;
    if (Get(it->second).state == BlockState::kCached) ++match.num_cached;
  }
  return match;
}

void BlockManager::AcquirePrefix(absl::Span<const BlockHash> chain, std::vector<BlockId>* table) {
  for (const BlockHash& hash : chain) {
    const auto it = index_.find(hash);
    SLUICE_CHECK(it != index_.end());
    AddReference(it->second, BlockUse::kActive);
    table->push_back(it->second);
  }
}

void BlockManager::Publish(BlockId id, const BlockHash& hash) {
  Block& block = Get(id);
  SLUICE_CHECK(block.state == BlockState::kActive || block.state == BlockState::kSending);
  if (!enable_prefix_cache_ || block.published) return;
  if (!index_.try_emplace(hash, id).second) return;
  block.hash = hash;
  block.published = true;
  log_.Add(hash);
}

void BlockManager::Lend(absl::Span<const BlockId> blocks) {
  for (const BlockId id : blocks) {
    SLUICE_CHECK(state(id) == BlockState::kActive || state(id) == BlockState::kSending);
    AddReference(id, BlockUse::kSending);
  }
}

void BlockManager::ChangeUse(absl::Span<const BlockId> blocks, BlockUse from, BlockUse to) {
  for (const BlockId id : blocks) {
    Block& block = Get(id);
    if (IsExclusive(from)) {
      SLUICE_CHECK(block.state == (from == BlockUse::kReceiving ? BlockState::kReceiving
                                                                : BlockState::kQuarantined));
      if (IsExclusive(to)) {
        SetState(id,
                 to == BlockUse::kReceiving ? BlockState::kReceiving : BlockState::kQuarantined);
        continue;
      }
    } else {
      SLUICE_CHECK(!IsExclusive(to));  // others may hold it, and its content may be indexed
      int32_t& references = from == BlockUse::kActive ? block.num_active : block.num_sending;
      SLUICE_CHECK(references > 0);
      --references;
    }
    ++(to == BlockUse::kActive ? block.num_active : block.num_sending);
    SettleShared(id);
  }
}

void BlockManager::Release(absl::Span<const BlockId> blocks, BlockUse use) {
  for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) DropReference(*it, use);
}

int64_t BlockManager::num_references(BlockId id) const {
  const Block& block = Get(id);
  const bool exclusive =
      block.state == BlockState::kReceiving || block.state == BlockState::kQuarantined;
  return exclusive ? 1 : block.num_active + block.num_sending;
}

const BlockManager::Block& BlockManager::Get(BlockId id) const {
  SLUICE_CHECK(id.value >= 0 && static_cast<size_t>(id.value) < blocks_.size());
  return blocks_[static_cast<size_t>(id.value)];
}

BlockManager::Block& BlockManager::Get(BlockId id) {
  return const_cast<Block&>(static_cast<const BlockManager*>(this)->Get(id));
}

int64_t& BlockManager::Count(BlockState state) {
  switch (state) {
    case BlockState::kFree:
      return counts_.free;
    case BlockState::kCached:
      return counts_.cached;
    case BlockState::kActive:
      return counts_.active;
    case BlockState::kReceiving:
      return counts_.receiving;
    case BlockState::kSending:
      return counts_.sending;
    case BlockState::kQuarantined:
      return counts_.quarantined;
  }
  std::abort();
}

void BlockManager::AddReference(BlockId id, BlockUse use) {
  Block& block = Get(id);
  switch (use) {
    case BlockUse::kActive:
      ++block.num_active;
      break;
    case BlockUse::kSending:
      ++block.num_sending;
      break;
    case BlockUse::kReceiving:
      SetState(id, BlockState::kReceiving);
      return;
    case BlockUse::kQuarantined:
      SetState(id, BlockState::kQuarantined);
      return;
  }
  SettleShared(id);
}

void BlockManager::DropReference(BlockId id, BlockUse use) {
  Block& block = Get(id);
  switch (use) {
    case BlockUse::kActive:
      SLUICE_CHECK(block.num_active > 0);
      --block.num_active;
      break;
    case BlockUse::kSending:
      SLUICE_CHECK(block.num_sending > 0);
      --block.num_sending;
      break;
    case BlockUse::kReceiving:
      SLUICE_CHECK(block.state == BlockState::kReceiving);
      break;
    case BlockUse::kQuarantined:
      SLUICE_CHECK(block.state == BlockState::kQuarantined);
      break;
  }
  SettleShared(id);
}

void BlockManager::SettleShared(BlockId id) {
  const Block& block = Get(id);
  if (block.num_sending > 0) {
    SetState(id, BlockState::kSending);
  } else if (block.num_active > 0) {
    SetState(id, BlockState::kActive);
  } else {
    SetState(id, block.published ? BlockState::kCached : BlockState::kFree);
  }
}

void BlockManager::SetState(BlockId id, BlockState state) {
  Block& block = Get(id);
  if (block.state == state) return;
  --Count(block.state);
  ++Count(state);
  if (block.state == BlockState::kCached) LruRemove(id);
  block.state = state;
  if (state == BlockState::kCached) LruAppend(id);
  if (state == BlockState::kFree) free_.push_back(id);
}

void BlockManager::Evict(BlockId id) {
  Block& block = Get(id);
  SLUICE_CHECK(block.state == BlockState::kCached && block.published);
  index_.erase(block.hash);
  log_.Remove(block.hash);
  block.published = false;
  ++num_evictions_;
  SetState(id, BlockState::kFree);
}

void BlockManager::LruAppend(BlockId id) {
  Block& block = Get(id);
  block.lru_previous = lru_newest_;
  block.lru_next = kNone;
  (lru_newest_ == kNone ? lru_oldest_ : Get(BlockId(lru_newest_)).lru_next) = id.value;
  lru_newest_ = id.value;
}

void BlockManager::LruRemove(BlockId id) {
  Block& block = Get(id);
  (block.lru_previous == kNone ? lru_oldest_ : Get(BlockId(block.lru_previous)).lru_next) =
      block.lru_next;
  (block.lru_next == kNone ? lru_newest_ : Get(BlockId(block.lru_next)).lru_previous) =
      block.lru_previous;
  block.lru_previous = block.lru_next = kNone;
}

absl::Status BlockManager::CheckIntegrity() const {
  const auto broken = [](auto&&... what) {
    return absl::InternalError(absl::StrCat("block manager: ", what...));
  };
  BlockCounts recount;
  int64_t num_published = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = blocks_[i];
    if (block.num_active < 0 || block.num_sending < 0) {
      return broken("block ", i, " has a negative count");
    }
    const bool referenced = block.num_active + block.num_sending > 0;
    if (block.published) {
      ++num_published;
      const auto it = index_.find(block.hash);
      if (it == index_.end() || static_cast<size_t>(it->second.value) != i) {
        return broken("block ", i, " is published, but the index does not lead to it");
      }
    }
    bool consistent = false;
    switch (block.state) {
      case BlockState::kFree:
        ++recount.free;
        consistent = !referenced && !block.published;
        break;
      case BlockState::kCached:
        ++recount.cached;
        consistent = !referenced && block.published;
        break;
      case BlockState::kActive:
        ++recount.active;
        consistent = block.num_active > 0 && block.num_sending == 0;
        break;
      case BlockState::kReceiving:
        ++recount.receiving;
        consistent = !referenced && !block.published;
        break;
      case BlockState::kSending:
        ++recount.sending;
        consistent = block.num_sending > 0;
        break;
      case BlockState::kQuarantined:
        ++recount.quarantined;
        consistent = !referenced && !block.published;
        break;
    }
    if (!consistent) {
      return broken("block ", i, " in state ", static_cast<int>(block.state), " has ",
                    block.num_active, " active and ", block.num_sending,
                    " sending references, published ", block.published);
    }
  }
  if (recount.free != counts_.free || recount.cached != counts_.cached ||
      recount.active != counts_.active || recount.receiving != counts_.receiving ||
      recount.sending != counts_.sending || recount.quarantined != counts_.quarantined ||
      counts_.total != static_cast<int64_t>(blocks_.size()) || !counts_.Balanced()) {
    return broken("the counts do not match the blocks");
  }
  if (num_published != static_cast<int64_t>(index_.size())) {
    return broken("the index has ", index_.size(), " entries for ", num_published, " blocks");
  }

  std::vector<bool> seen(blocks_.size(), false);
  for (const BlockId id : free_) {
    if (seen[id.value] || Get(id).state != BlockState::kFree) {
      return broken("block ", id.value, " is wrongly in the free list");
    }
    seen[id.value] = true;
  }
  if (static_cast<int64_t>(free_.size()) != counts_.free) return broken("the free list is short");

  int64_t num_in_lru = 0;
  int32_t previous = kNone;
  for (int32_t i = lru_oldest_; i != kNone; i = blocks_[i].lru_next) {
    if (++num_in_lru > counts_.cached || blocks_[i].state != BlockState::kCached ||
        blocks_[i].lru_previous != previous) {
      return broken("the LRU list is broken at block ", i);
    }
    previous = i;
  }
  if (num_in_lru != counts_.cached || previous != lru_newest_) {
    return broken("the LRU list has ", num_in_lru, " of ", counts_.cached, " cached blocks");
  }
  return absl::OkStatus();
}

}  // namespace sluice
