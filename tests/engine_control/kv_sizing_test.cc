// How many blocks a worker takes, and what it refuses.
#include "engine/runtime/kv_sizing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/available_memory.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kGiB = 1 << 30;

KvSizingInput Input() {
  KvSizingInput input;
  input.block_bytes = kMiB;
  input.available_bytes = 4 * kGiB;
  input.max_position_embeddings = 4096;  // 64 blocks
  return input;
}

TEST(KvSizingTest, TakesAQuarterAndAtMostTwoGiB) {
  KvSizingInput input = Input();
  EXPECT_EQ(SizeKvCache(input)->num_blocks, 1024);
  EXPECT_EQ(SizeKvCache(input)->max_model_len, 4096);
  input.available_bytes = 64 * kGiB;
  EXPECT_EQ(SizeKvCache(input)->num_blocks, 2048);
}

TEST(KvSizingTest, TakesMoreForOneSequenceIfThatIsCheapOrAsked) {
  KvSizingInput input = Input();
  input.max_position_embeddings = 64 * 1500;
  EXPECT_EQ(SizeKvCache(input)->num_blocks, 1516);
  input.max_position_embeddings = 64 * 3000;
  EXPECT_EQ(SizeKvCache(input)->num_blocks, 1024);  // more than half of all memory: shorter instead
  EXPECT_EQ(SizeKvCache(input)->max_model_len, 64 * 1024);
  input.max_model_len = 64 * 3000;
  EXPECT_EQ(SizeKvCache(input)->num_blocks, 3016);
  input.max_position_embeddings = input.max_model_len = 64 * 5000;
  EXPECT_EQ(SizeKvCache(input).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(KvSizingTest, FollowsTheConfiguration) {
  KvSizingInput input = Input();
  input.kv_cache_bytes = 100 * kMiB + 5;
  EXPECT_EQ(SizeKvCache(input)->num_blocks, 100);
  input.num_kv_blocks = 10;
  EXPECT_EQ(SizeKvCache(input)->num_blocks, 10);
  EXPECT_EQ(SizeKvCache(input)->max_model_len, 640);
  input.max_model_len = 640;
  EXPECT_EQ(SizeKvCache(input)->max_model_len, 640);
  input.max_model_len = 641;
  EXPECT_THAT(std::string(SizeKvCache(input).status().message()), HasSubstr("max_model_len (641)"));
}

TEST(KvSizingTest, RefusesTheImpossible) {
  KvSizingInput input = Input();
  input.max_model_len = 4097;
  EXPECT_EQ(SizeKvCache(input).status().code(), absl::StatusCode::kInvalidArgument);
  input = Input();
  input.num_kv_blocks = 5000;
  EXPECT_THAT(std::string(SizeKvCache(input).status().message()), HasSubstr("available"));
  input = Input();
  input.kv_cache_bytes = 1000;  // less than a block
  EXPECT_EQ(SizeKvCache(input).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(SizeKvCache(input).status().message()),
              HasSubstr("raise kv_cache"));  // as the key is called
  input = Input();
  input.available_bytes = kMiB / 2;
  EXPECT_EQ(SizeKvCache(input).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(AvailableMemoryTest, SmallerOfKernelAndControlGroup) {
  const char* meminfo = "MemTotal:       16000 kB\nMemAvailable:    8000 kB\nBuffers: 1 kB\n";
  EXPECT_EQ(*ParseAvailableMemory(meminfo, {}), 8000 * 1024);
  EXPECT_EQ(*ParseAvailableMemory(meminfo, {"max\n", "5\n", ""}), 8000 * 1024);
  EXPECT_EQ(*ParseAvailableMemory(meminfo, {"1000000\n", "400000\n", ""}), 600000);
  EXPECT_EQ(*ParseAvailableMemory(meminfo, {"1000\n", "4000\n", ""}), 0);
  EXPECT_FALSE(ParseAvailableMemory("MemTotal: 16000 kB\n", {}).ok());
  EXPECT_TRUE(AvailableMemoryBytes().ok());
  EXPECT_GT(*AvailableMemoryBytes(), 0);
}

// A pod that has just read its checkpoint is full of cache that the kernel gives back.
TEST(AvailableMemoryTest, TheFileCacheOfTheControlGroupIsFree) {
  const char* meminfo = "MemAvailable:    8000 kB\n";
  const char* v2 =
      "anon 200000\nfile 750000\nshmem 50000\ninactive_anon 10\nactive_anon 20\n"
      "inactive_file 600000\nactive_file 100000\nunevictable 0\n";
  EXPECT_EQ(*ParseAvailableMemory(meminfo, {"1000000\n", "990000\n", v2}), 710000);
  // Without its children a v1 group seems to cache less than it does.
  const char* v1 =
      "cache 1\ninactive_file 1\nactive_file 2\ntotal_cache 9\ntotal_inactive_file 600000\n"
      "total_active_file 100000\n";
  EXPECT_EQ(*ParseAvailableMemory(meminfo, {"1000000\n", "990000\n", v1}), 710000);
  EXPECT_EQ(*ParseAvailableMemory(meminfo, {"9223372036854771712\n", "990000\n", v1}), 8000 * 1024);
  // The files are read one after the other and need not agree.
  EXPECT_EQ(*ParseAvailableMemory(meminfo, {"1000000\n", "500000\n", v2}), 1000000);
  EXPECT_EQ(*ParseAvailableMemory(meminfo, {"1000000\n", "990000\n", "inactive_file x\n"}), 10000);
}

}  // namespace
}  // namespace sluice
