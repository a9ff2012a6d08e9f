// When a prefill worker fetches instead of computing.
#include "services/prefill_worker/fetch_policy.h"

#include <gtest/gtest.h>

#include "common/block_hash.h"

namespace sluice::worker {
namespace {

const absl::Time kNow = absl::UnixEpoch() + absl::Hours(1);

TEST(FetchPolicy, FetchesWhatWasNeverMeasured) {
  FetchPolicy policy;
  EXPECT_TRUE(policy.Worthwhile(1000, kNow));
  policy.Computed(1000, absl::Seconds(1));
  EXPECT_TRUE(policy.Worthwhile(1000, kNow));
}

TEST(FetchPolicy, OneBlockIsComputed) {
  FetchPolicy policy;
  EXPECT_FALSE(policy.Worthwhile(-64, kNow));
  EXPECT_FALSE(policy.Worthwhile(0, kNow));
  EXPECT_FALSE(policy.Worthwhile(kBlockTokens, kNow));
  EXPECT_TRUE(policy.Worthwhile(2 * kBlockTokens, kNow));
}

TEST(FetchPolicy, TheFasterWayWins) {
  FetchPolicy policy;
  policy.Computed(1000, absl::Seconds(1));
  policy.Fetched(1000, absl::Milliseconds(900), kNow);
  EXPECT_TRUE(policy.Worthwhile(1000, kNow));
  policy.Fetched(1000, absl::Milliseconds(1200), kNow);  // 952 a second in all
  EXPECT_FALSE(policy.Worthwhile(1000, kNow));
}

TEST(FetchPolicy, ShortPrefixesMustPayForTheSetup) {
  FetchPolicy policy;
  policy.Computed(100000, absl::Seconds(1));
  policy.Fetched(200000, absl::Seconds(1), kNow);
  EXPECT_FALSE(policy.Worthwhile(128, kNow));  // 1.3 ms of computing
  EXPECT_TRUE(policy.Worthwhile(6400, kNow));
}

TEST(FetchPolicy, FailuresStopFetchingForAWhile) {
  FetchPolicy policy;
  policy.Computed(1000, absl::Seconds(1));
  policy.Fetched(0, absl::Seconds(1), kNow);
  EXPECT_FALSE(policy.Worthwhile(1000, kNow));
  EXPECT_TRUE(policy.Worthwhile(1000, kNow + absl::Minutes(1)));
  // The new measure is not mixed with the forgotten one.
  policy.Fetched(1000, absl::Milliseconds(100), kNow + absl::Minutes(1));
  EXPECT_TRUE(policy.Worthwhile(1000, kNow + absl::Minutes(1)));
}

TEST(FetchPolicy, FailuresOutweighAnEarlierSuccess) {
  FetchPolicy policy;
  policy.Computed(1000, absl::Seconds(1));
  policy.Fetched(1000, absl::Milliseconds(1), kNow);
  ASSERT_TRUE(policy.Worthwhile(1000, kNow));
  for (int i = 1; i <= 3; ++i) {
    policy.Fetched(0, absl::Seconds(1), kNow + i * absl::Seconds(1));
  }
  EXPECT_FALSE(policy.Worthwhile(1000, kNow + absl::Seconds(3)));
}

TEST(FetchPolicy, AFetchMayTakeAsLongAsComputing) {
  FetchPolicy policy;
  EXPECT_GT(policy.Allowance(1000, absl::Seconds(1)), absl::Seconds(1));
  policy.Computed(1000, absl::Seconds(1));
  EXPECT_EQ(policy.Allowance(3000, absl::Seconds(1)), absl::Seconds(3));
  EXPECT_EQ(policy.Allowance(100, absl::Seconds(1)), absl::Seconds(1));
}

}  // namespace
}  // namespace sluice::worker
