// The block pool: states, sharing, eviction order and the change log; and random calls held against
// a naive model of it.
#include "engine/kv/block_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

BlockHash Hash(int i) {
  BlockHash hash;
  hash.bytes[0] = static_cast<uint8_t>(i);
  hash.bytes[1] = static_cast<uint8_t>(i >> 8);
  hash.bytes[2] = 1;
  return hash;
}

std::vector<BlockId> Take(BlockManager* blocks, int count, BlockUse use = BlockUse::kActive) {
  std::vector<BlockId> table;
  EXPECT_TRUE(blocks->Allocate(count, use, &table));
  EXPECT_TRUE(blocks->CheckIntegrity().ok()) << blocks->CheckIntegrity();
  return table;
}

TEST(BlockManagerTest, AllocatesAllOrNothing) {
  BlockManager blocks(4, true);
  std::vector<BlockId> table = Take(&blocks, 3);
  EXPECT_EQ(blocks.counts().active, 3);
  EXPECT_EQ(blocks.num_allocatable(), 1);
  std::vector<BlockId> more;
  EXPECT_FALSE(blocks.Allocate(2, BlockUse::kActive, &more));
  EXPECT_THAT(more, IsEmpty());
  EXPECT_EQ(blocks.counts().free, 1);
  blocks.Release(table, BlockUse::kActive);
  EXPECT_EQ(blocks.counts().free, 4);
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
}

TEST(BlockManagerTest, PublishedBlocksAreFoundSharedAndCached) {
  BlockManager blocks(4, true);
  const std::vector<BlockId> table = Take(&blocks, 2);
  blocks.Publish(table[0], Hash(0));
  blocks.Publish(table[1], Hash(1));
  const std::vector<BlockHash> chain = {Hash(0), Hash(1), Hash(2)};
  EXPECT_EQ(blocks.MatchPrefix(chain).num_blocks, 2);
  EXPECT_EQ(blocks.MatchPrefix(chain).num_cached, 0);

  std::vector<BlockId> other;
  blocks.AcquirePrefix(absl::MakeConstSpan(chain).first(2), &other);
  EXPECT_EQ(other, table);
  EXPECT_EQ(blocks.num_references(table[0]), 2);
  EXPECT_EQ(blocks.counts().active, 2);
  blocks.Release(table, BlockUse::kActive);
  EXPECT_EQ(blocks.counts().active, 2);
  blocks.Release(other, BlockUse::kActive);
  EXPECT_EQ(blocks.counts().cached, 2);
  EXPECT_EQ(blocks.MatchPrefix(chain).num_cached, 2);
  EXPECT_EQ(blocks.num_allocatable(), 4);
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
}

TEST(BlockManagerTest, AHoleEndsTheMatch) {
  BlockManager blocks(4, true);
  const std::vector<BlockId> table = Take(&blocks, 2);
  blocks.Publish(table[1], Hash(1));
  EXPECT_EQ(blocks.MatchPrefix({Hash(0), Hash(1)}).num_blocks, 0);
}

TEST(BlockManagerTest, DuplicateContentStaysPrivate) {
  BlockManager blocks(4, true);
  const std::vector<BlockId> table = Take(&blocks, 2);
  blocks.Publish(table[0], Hash(0));
  blocks.Publish(table[1], Hash(0));
  EXPECT_FALSE(blocks.is_published(table[1]));
  blocks.Release(table, BlockUse::kActive);
  EXPECT_EQ(blocks.counts().cached, 1);
  EXPECT_EQ(blocks.counts().free, 3);
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
}

TEST(BlockManagerTest, EvictsLeastRecentlyUsedAndEndsOfChainsFirst) {
  BlockManager blocks(4, true);
  const std::vector<BlockId> a = Take(&blocks, 2);
  blocks.Publish(a[0], Hash(0));
  blocks.Publish(a[1], Hash(1));
  const std::vector<BlockId> b = Take(&blocks, 2);
  blocks.Publish(b[0], Hash(10));
  blocks.Publish(b[1], Hash(11));
  blocks.Release(a, BlockUse::kActive);
  blocks.Release(b, BlockUse::kActive);
  // Using chain a again makes b the older one.
  std::vector<BlockId> again;
  blocks.AcquirePrefix({Hash(0), Hash(1)}, &again);
  blocks.Release(again, BlockUse::kActive);

  EXPECT_THAT(Take(&blocks, 1), ElementsAre(b[1]));
  EXPECT_THAT(Take(&blocks, 2), ElementsAre(b[0], a[1]));
  EXPECT_EQ(blocks.MatchPrefix({Hash(0), Hash(1)}).num_blocks, 1);
  EXPECT_EQ(blocks.num_evictions(), 3);
}

TEST(BlockManagerTest, SendingOutranksActiveAndIsNotEvictable) {
  BlockManager blocks(2, true);
  const std::vector<BlockId> table = Take(&blocks, 2);
  blocks.Publish(table[0], Hash(0));
  blocks.ChangeUse(table, BlockUse::kActive, BlockUse::kSending);
  EXPECT_EQ(blocks.counts().sending, 2);
  std::vector<BlockId> reader;
  blocks.AcquirePrefix({Hash(0)}, &reader);
  EXPECT_EQ(blocks.state(table[0]), BlockState::kSending);
  EXPECT_EQ(blocks.num_allocatable(), 0);
  blocks.Release(table, BlockUse::kSending);
  EXPECT_EQ(blocks.state(table[0]), BlockState::kActive);
  EXPECT_EQ(blocks.counts().free, 1);
  blocks.Release(reader, BlockUse::kActive);
  EXPECT_EQ(blocks.counts().cached, 1);
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
}

TEST(BlockManagerTest, ReceivedBlocksGoThroughQuarantine) {
  BlockManager blocks(3, true);
  const std::vector<BlockId> table = Take(&blocks, 3, BlockUse::kReceiving);
  EXPECT_EQ(blocks.counts().receiving, 3);
  blocks.ChangeUse(table, BlockUse::kReceiving, BlockUse::kQuarantined);
  EXPECT_EQ(blocks.counts().quarantined, 3);
  EXPECT_EQ(blocks.num_allocatable(), 0);
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
  blocks.Release(table, BlockUse::kQuarantined);
  EXPECT_EQ(blocks.counts().free, 3);
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
}

TEST(BlockManagerTest, ChangeLogCancelsOut) {
  BlockManager blocks(1, true);
  for (int i = 0; i < 3; ++i) {  // each publication evicts the one before
    const std::vector<BlockId> table = Take(&blocks, 1);
    blocks.Publish(table[0], Hash(i));
    blocks.Release(table, BlockUse::kActive);
  }
  PrefixCacheChanges changes = blocks.TakePrefixCacheChanges();
  EXPECT_THAT(changes.added, ElementsAre(Hash(2)));
  EXPECT_THAT(changes.removed, IsEmpty());
  const std::vector<BlockId> table = Take(&blocks, 1);
  changes = blocks.TakePrefixCacheChanges();
  EXPECT_THAT(changes.added, IsEmpty());
  EXPECT_THAT(changes.removed, ElementsAre(Hash(2)));
  blocks.Release(table, BlockUse::kActive);
}

using BlockManagerDeathTest = ::testing::Test;

TEST(BlockManagerDeathTest, BrokenOwnershipAborts) {
  BlockManager blocks(2, true);
  const std::vector<BlockId> table = Take(&blocks, 1);
  EXPECT_DEATH(blocks.Release(table, BlockUse::kSending), "invariant broken");
  EXPECT_DEATH(blocks.ChangeUse(table, BlockUse::kReceiving, BlockUse::kActive),
               "invariant broken");
  EXPECT_DEATH(blocks.Release({BlockId(2)}, BlockUse::kActive), "invariant broken");
  blocks.Release(table, BlockUse::kActive);
  EXPECT_DEATH(blocks.Release(table, BlockUse::kActive), "invariant broken");
}

// A naive pool: every holder is a list of blocks; the index is a map; nothing is incremental.
TEST(BlockManagerTest, RandomCallsMatchANaiveModel) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto uniform = [&random](int n) { return static_cast<int>(random() % n); };
    const int num_blocks = 1 + uniform(20);
    BlockManager blocks(num_blocks, true);
    struct Holder {
      std::vector<BlockId> table;
      BlockUse use;
    };
    std::vector<Holder> holders;
    std::map<BlockHash, BlockId> index;
    std::set<BlockHash> told;  // what a listener to the change log believes

    for (int call = 0; call < 300; ++call) {
      const int choice = uniform(6);
      if (choice == 0) {
        Holder holder{{}, uniform(3) == 0 ? BlockUse::kReceiving : BlockUse::kActive};
        const int count = 1 + uniform(6);
        const int64_t allocatable = blocks.num_allocatable();
        ASSERT_EQ(blocks.Allocate(count, holder.use, &holder.table), count <= allocatable);
        for (const BlockId id : holder.table) {
          std::erase_if(index, [id](const auto& entry) { return entry.second == id; });
          for (const Holder& other : holders)
            ASSERT_THAT(other.table, ::testing::Not(::testing::Contains(id)));
        }
        if (!holder.table.empty()) holders.push_back(holder);
      } else if (choice == 1 && !holders.empty()) {
        Holder& holder = holders[uniform(static_cast<int>(holders.size()))];
        if (holder.use == BlockUse::kActive || holder.use == BlockUse::kSending) {
          const BlockId id = holder.table[uniform(static_cast<int>(holder.table.size()))];
          const BlockHash hash = Hash(uniform(30));
          if (!blocks.is_published(id)) index.try_emplace(hash, id);
          blocks.Publish(id, hash);
        }
      } else if (choice == 2 && !index.empty()) {
        auto it = index.begin();
        std::advance(it, uniform(static_cast<int>(index.size())));
        Holder holder{{}, BlockUse::kActive};
        ASSERT_EQ(blocks.MatchPrefix({it->first}).num_blocks, 1);
        blocks.AcquirePrefix({it->first}, &holder.table);
        ASSERT_THAT(holder.table, ElementsAre(it->second));
        holders.push_back(holder);
      } else if (choice == 3 && !holders.empty()) {
        Holder& holder = holders[uniform(static_cast<int>(holders.size()))];
        BlockUse to = BlockUse::kActive;
        if (holder.use == BlockUse::kActive) to = BlockUse::kSending;
        if (holder.use == BlockUse::kReceiving && uniform(2) == 0) to = BlockUse::kQuarantined;
        blocks.ChangeUse(holder.table, holder.use, to);
        holder.use = to;
      } else if (choice == 4 && !holders.empty()) {
        const int i = uniform(static_cast<int>(holders.size()));
        blocks.Release(holders[i].table, holders[i].use);
        holders.erase(holders.begin() + i);
      } else {
        const PrefixCacheChanges changes = blocks.TakePrefixCacheChanges();
        for (const BlockHash& hash : changes.removed) ASSERT_EQ(told.erase(hash), 1u);
        for (const BlockHash& hash : changes.added) ASSERT_TRUE(told.insert(hash).second);
        std::set<BlockHash> indexed;
        for (const auto& [hash, id] : index) indexed.insert(hash);
        ASSERT_EQ(told, indexed);
      }

      ASSERT_TRUE(blocks.CheckIntegrity().ok()) << blocks.CheckIntegrity();
      BlockCounts expected;
      expected.total = num_blocks;
      for (int i = 0; i < num_blocks; ++i) {
        const BlockId id(i);
        std::set<BlockUse> uses;
        int references = 0;
        for (const Holder& holder : holders) {
          const auto count = std::count(holder.table.begin(), holder.table.end(), id);
          references += static_cast<int>(count);
          if (count > 0) uses.insert(holder.use);
        }
        const bool published = std::any_of(index.begin(), index.end(),
                                           [id](const auto& entry) { return entry.second == id; });
        ASSERT_EQ(blocks.is_published(id), published);
        ASSERT_EQ(blocks.num_references(id), references);
        if (references == 0) {
          ++(published ? expected.cached : expected.free);
        } else if (uses.contains(BlockUse::kSending)) {
          ++expected.sending;
        } else if (uses.contains(BlockUse::kReceiving)) {
          ++expected.receiving;
        } else if (uses.contains(BlockUse::kQuarantined)) {
          ++expected.quarantined;
        } else {
          ++expected.active;
        }
      }
      const BlockCounts& counts = blocks.counts();
      ASSERT_EQ(counts.free, expected.free);
      ASSERT_EQ(counts.cached, expected.cached);
      ASSERT_EQ(counts.active, expected.active);
      ASSERT_EQ(counts.receiving, expected.receiving);
      ASSERT_EQ(counts.sending, expected.sending);
      ASSERT_EQ(counts.quarantined, expected.quarantined);
    }
  }
}

}  // namespace
}  // namespace sluice
