#include "common/block_hash.h"

#include <gtest/gtest.h>

#include <numeric>

namespace sluice {
namespace {

std::vector<TokenId> Tokens(int count) {
  std::vector<TokenId> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 100);
  return tokens;
}

TEST(BlockHashTest, OnlyFullBlocksAreNamed) {
  const BlockHash root = RootBlockHash("model", "");
  EXPECT_EQ(BlockHashChain(root, Tokens(0)).size(), 0u);
  EXPECT_EQ(BlockHashChain(root, Tokens(kBlockTokens - 1)).size(), 0u);
  EXPECT_EQ(BlockHashChain(root, Tokens(kBlockTokens)).size(), 1u);
  EXPECT_EQ(BlockHashChain(root, Tokens(3 * kBlockTokens + 5)).size(), 3u);
}

TEST(BlockHashTest, AChainIsItsLinksAndAPrefixOfLongerOnes) {
  const BlockHash root = RootBlockHash("model", "");
  const std::vector<TokenId> tokens = Tokens(2 * kBlockTokens);
  const std::vector<BlockHash> chain = BlockHashChain(root, tokens);
  const absl::Span<const TokenId> span(tokens);
  EXPECT_EQ(chain[0], ChildBlockHash(root, span.subspan(0, kBlockTokens)));
  EXPECT_EQ(chain[1], ChildBlockHash(chain[0], span.subspan(kBlockTokens)));
  const std::vector<BlockHash> longer = BlockHashChain(root, Tokens(5 * kBlockTokens));
  EXPECT_EQ(longer[0], chain[0]);
  EXPECT_EQ(longer[1], chain[1]);
}

TEST(BlockHashTest, ATokenChangesItsBlockAndAllLaterOnes) {
  const BlockHash root = RootBlockHash("model", "");
  std::vector<TokenId> tokens = Tokens(3 * kBlockTokens);
  const std::vector<BlockHash> before = BlockHashChain(root, tokens);
  tokens[kBlockTokens] ^= 1;
  const std::vector<BlockHash> after = BlockHashChain(root, tokens);
  EXPECT_EQ(after[0], before[0]);
  EXPECT_NE(after[1], before[1]);
  EXPECT_NE(after[2], before[2]);
}

TEST(BlockHashTest, ModelsAndTenantsNeverShare) {
  EXPECT_NE(RootBlockHash("model", ""), RootBlockHash("model2", ""));
  EXPECT_NE(RootBlockHash("model", "a"), RootBlockHash("model", "b"));
  EXPECT_NE(RootBlockHash("ab", "c"), RootBlockHash("a", "bc"));
  EXPECT_NE(RootBlockHash("a:1", ""), RootBlockHash("a", "1:"));
}

// Router and workers of different releases must agree; a change here is a protocol change.
TEST(BlockHashTest, KnownAnswer) {
  const std::vector<TokenId> tokens = Tokens(kBlockTokens);
  EXPECT_EQ(ChildBlockHash(RootBlockHash("model", "salt"), tokens).ToString(),
            "3e8f0720e818622600a470abadb4a2ec");
}

}  // namespace
}  // namespace sluice
