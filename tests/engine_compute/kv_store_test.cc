#include "engine/kv/kv_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace sluice {
namespace {

KvLayout Layout() {
  KvLayout layout;
  layout.block_tokens = 64;
  layout.dtype = DType::kBF16;
  layout.groups = {{"latent", /*num_layers=*/3, /*bytes_per_token_and_layer=*/80}};
  return layout;
}

TEST(KvStore, AddressesAreBlockMajorAndZero) {
  const auto store = KvStore::Create(Layout(), 5);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->num_blocks(), 5);
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*store)->Block(BlockId(0)).data()) % 4096, 0u);
  const absl::Span<uint8_t> last = (*store)->Block(BlockId(4));
  EXPECT_EQ(last.size(), 64u * 80 * 3);
  EXPECT_EQ(last.data() - (*store)->Block(BlockId(0)).data(), 4 * 64 * 80 * 3);
  EXPECT_EQ((*store)->Layer(BlockId(4), 2) - last.data(), 2 * 64 * 80);
  EXPECT_THAT(last, testing::Each(0));
}

TEST(KvStore, RefusesImpossibleSizes) {
  EXPECT_EQ(KvStore::Create(Layout(), 0).status().code(), absl::StatusCode::kInvalidArgument);
  const auto huge = KvStore::Create(Layout(), int64_t{1} << 45);
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(huge.status().message()),
              testing::HasSubstr(absl::StrCat(int64_t{1} << 45)));
  EXPECT_EQ(KvStore::Create(Layout(), INT64_MAX / 2).status().code(),
            absl::StatusCode::kResourceExhausted);
  KvLayout two = Layout();
  two.groups.push_back(two.groups[0]);
  EXPECT_EQ(KvStore::Create(two, 1).status().code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace sluice
