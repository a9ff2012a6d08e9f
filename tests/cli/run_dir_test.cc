#include "cli/run_dir.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/cli/fake_programs.h"

namespace sluice::cli {
namespace {

TEST(RunDir, OneClusterAFolder) {
  const FakePrograms programs;
  EXPECT_FALSE(RunDirLock::IsHeld(programs.run_dir()));
  EXPECT_TRUE(absl::IsNotFound(ReadClusterInfo(programs.run_dir()).status()));
  {
    const auto lock = RunDirLock::Take(programs.run_dir()).value();
    EXPECT_TRUE(absl::IsAlreadyExists(RunDirLock::Take(programs.run_dir()).status()));
    ASSERT_TRUE(
        WriteClusterInfo(programs.run_dir(), {1234, "a:1", "b:2", "c:3", absl::Seconds(90)}).ok());
    const ClusterInfo info = ReadClusterInfo(programs.run_dir()).value();
    EXPECT_EQ(info.stop_timeout, absl::Seconds(90));
    EXPECT_EQ(info.pid, 1234);
    EXPECT_EQ(info.grpc_address, "b:2");
  }
  EXPECT_TRUE(absl::IsNotFound(ReadClusterInfo(programs.run_dir()).status()));
  EXPECT_TRUE(RunDirLock::Take(programs.run_dir()).ok());
}

TEST(RunDir, KeepsStrangersFiles) {
  const FakePrograms programs;
  std::filesystem::create_directories(programs.run_dir());
  std::ofstream(programs.run_dir() + "/mine.json") << "{}";
  std::ofstream(programs.run_dir() + "/router.ports.json") << "{}";
  const auto lock = RunDirLock::Take(programs.run_dir()).value();
  EXPECT_TRUE(std::filesystem::exists(programs.run_dir() + "/mine.json"));
  EXPECT_FALSE(std::filesystem::exists(programs.run_dir() + "/router.ports.json"));
}

}  // namespace
}  // namespace sluice::cli
