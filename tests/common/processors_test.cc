#include "common/processors.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

namespace sluice {
namespace {

// The limit that a control group's file sets, with as many processors as this test may use.
class ProcessorsTest : public ::testing::Test {
 protected:
  ~ProcessorsTest() override { std::filesystem::remove(path_); }

  int WithCpuMax(const std::string& text) {
    std::ofstream(path_) << text;
    return AvailableProcessors(path_);
  }

  const std::string path_ = ::testing::TempDir() + "/cpu.max." + std::to_string(getpid());
  const int allowed_ = AvailableProcessors("/nonexistent/cpu.max");
};

TEST_F(ProcessorsTest, AreThoseOfTheAffinityWithoutALimit) {
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  EXPECT_EQ(allowed_, CPU_COUNT(&set));
  EXPECT_EQ(WithCpuMax("max 100000\n"), allowed_);
  EXPECT_EQ(WithCpuMax(""), allowed_);
  EXPECT_EQ(WithCpuMax("nonsense\n"), allowed_);
}

TEST_F(ProcessorsTest, AreAtMostTheLimitRoundedDown) {
  EXPECT_EQ(WithCpuMax("100000 100000\n"), 1);
  EXPECT_EQ(WithCpuMax("199999 100000\n"), 1);
  EXPECT_EQ(WithCpuMax("250000 100000\n"), std::min(allowed_, 2));
  EXPECT_EQ(WithCpuMax("99900000 100000\n"), std::min(allowed_, 999));
}

TEST_F(ProcessorsTest, AreAtLeastOne) { EXPECT_EQ(WithCpuMax("20000 100000\n"), 1); }

}  // namespace
}  // namespace sluice
