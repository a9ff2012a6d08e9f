#include "cli/machine_share.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace sluice::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST(MachineShare, SharesCoresAndAQuarterOfTheMemory) {
  EXPECT_EQ(ShareMachine({2, 4 * kGiB}, 2, 0).threads, 1);
  EXPECT_EQ(ShareMachine({2, 4 * kGiB}, 2, 0).kv_cache.bytes, kGiB / 2);
  EXPECT_EQ(ShareMachine({2, 8 * kGiB}, 2, 2 * kGiB).kv_cache.bytes, kGiB / 2);
  EXPECT_EQ(ShareMachine({2, 4 * kGiB}, 2, 3 * kGiB).kv_cache.bytes, kGiB / 16);
  EXPECT_EQ(ShareMachine({1, kGiB / 16}, 3, 0).threads, 1);
  EXPECT_EQ(ShareMachine({1, kGiB / 16}, 3, 0).kv_cache.bytes, kGiB / 16);  // at least 64 MiB
  EXPECT_EQ(ShareMachine({64, 512 * kGiB}, 2, 0).threads, 32);
  EXPECT_EQ(ShareMachine({64, 512 * kGiB}, 2, 0).kv_cache.bytes, kGiB);  // at most 1 GiB
  EXPECT_GE(ThisMachine().num_cores, 1);
  EXPECT_GT(ThisMachine().available_memory, 0u);
}

TEST(MachineShare, RefusesWhatDoesNotFitTogether) {
  const Machine machine{2, 26 * kGiB};
  EXPECT_TRUE(CheckMemory(machine, 2, 10 * kGiB, {3 * kGiB}).ok());
  const absl::Status two = CheckMemory(machine, 2, 10 * kGiB, {4 * kGiB});
  EXPECT_TRUE(absl::IsResourceExhausted(two));
  EXPECT_THAT(std::string(two.message()),
              AllOf(HasSubstr("each of 2 workers needs 10.74 GB"), HasSubstr("4.29 GB for KV"),
                    HasSubstr("27.92 GB"), HasSubstr("--both 1")));
  const absl::Status none = CheckMemory(machine, 1, 26 * kGiB, {kGiB});
  EXPECT_TRUE(absl::IsResourceExhausted(none));
  EXPECT_THAT(std::string(none.message()), ::testing::Not(HasSubstr("--both")));
}

TEST(MachineShare, PrefillYieldsFullyWhereEveryThreadHasACore) {
  EXPECT_EQ(PrefillNiceness(2, 2), 19);
  EXPECT_EQ(PrefillNiceness(3, 2), 5);
}

}  // namespace
}  // namespace sluice::cli
