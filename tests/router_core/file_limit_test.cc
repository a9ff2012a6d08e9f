// The limit on open files: raised at the start, and never all of it HTTP's.
#include "services/router/file_limit.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>

namespace sluice::router {
namespace {

TEST(FileLimitTest, HttpLeavesFilesToTheOthers) {
  EXPECT_EQ(HttpShareOfFiles(1 << 20, 4096), 4096);
  EXPECT_EQ(HttpShareOfFiles(4096 + 1024, 4096), 4096);
  EXPECT_EQ(HttpShareOfFiles(4096, 4096), 3072);
  EXPECT_EQ(HttpShareOfFiles(1024, 4096), 512);
  EXPECT_EQ(HttpShareOfFiles(1024, 100), 100);
  EXPECT_EQ(HttpShareOfFiles(0, 100), 1);
}

TEST(FileLimitTest, TheSoftLimitBecomesTheHardOne) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = std::min<rlim_t>(before.rlim_max, 256);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  const int share = RaiseFileLimit(/*max_connections=*/10);
  rlimit after{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, std::min<rlim_t>(before.rlim_max, 1 << 20));
  EXPECT_EQ(after.rlim_max, before.rlim_max);
  EXPECT_EQ(share, 10);
  setrlimit(RLIMIT_NOFILE, &before);
}

}  // namespace
}  // namespace sluice::router
