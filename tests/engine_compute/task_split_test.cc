#include "engine/device/task_split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace sluice {
namespace {

std::vector<int64_t> Shares(int64_t total, int num_threads) {
  std::vector<int64_t> shares;
  for (int64_t left = total; left > 0; left -= shares.back()) {
    shares.push_back(NextShare(left, num_threads));
  }
  return shares;
}

TEST(TaskSplit, CoversEverythingInSharesThatDoNotGrow) {
  for (const int threads : {1, 2, 3, 16, 100}) {
    for (int64_t total = 1; total < 2000; total += 7) {
      const std::vector<int64_t> shares = Shares(total, threads);
      int64_t sum = 0;
      for (const int64_t share : shares) {
        ASSERT_GE(share, 1);
        sum += share;
      }
      ASSERT_EQ(sum, total);
      ASSERT_TRUE(std::is_sorted(shares.rbegin(), shares.rend()));
      ASSERT_EQ(shares.back(), 1);
    }
  }
}

TEST(TaskSplit, FirstShareIsAThirdOfAThreadsEvenPart) {
  EXPECT_EQ(NextShare(600, 2), 100);
  EXPECT_EQ(NextShare(601, 2), 101);
  EXPECT_EQ(NextShare(1, 64), 1);
  EXPECT_EQ(NextShare(0, 2), 0);
}

// The reason for it: threads that always claim the next task end within one small task of each
// other, however different their speeds are.
TEST(TaskSplit, ThreadsOfDifferentSpeedsEndTogether) {
  for (const double slower : {1.0, 1.3, 2.0, 3.0}) {
    double busy_until[2] = {0, 0};
    for (const int64_t share : Shares(1000, 2)) {
      const int next = busy_until[1] < busy_until[0] ? 1 : 0;
      busy_until[next] += static_cast<double>(share) * (next == 1 ? slower : 1.0);
    }
    EXPECT_LE(std::max(busy_until[0], busy_until[1]) - std::min(busy_until[0], busy_until[1]),
              slower * 2)
        << "slower by " << slower;
  }
}

TEST(TaskSplit, MakesFewTasks) {
  EXPECT_LE(Shares(1000, 2).size(), 40U);
  EXPECT_LE(Shares(1000000, 2).size(), 80U);
}

}  // namespace
}  // namespace sluice
