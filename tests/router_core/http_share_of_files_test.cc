// Open files are never all HTTP's.
#include "services/router/http_share_of_files.h"

#include <gtest/gtest.h>

namespace sluice::router {
namespace {

TEST(HttpShareOfFilesTest, HttpLeavesFilesToTheOthers) {
  EXPECT_EQ(HttpShareOfFiles(1 << 20, 4096), 4096);
  EXPECT_EQ(HttpShareOfFiles(4096 + 1024, 4096), 4096);
  EXPECT_EQ(HttpShareOfFiles(4096, 4096), 3072);
  EXPECT_EQ(HttpShareOfFiles(1024, 4096), 512);
  EXPECT_EQ(HttpShareOfFiles(1024, 100), 100);
  EXPECT_EQ(HttpShareOfFiles(0, 100), 1);
}

}  // namespace
}  // namespace sluice::router
