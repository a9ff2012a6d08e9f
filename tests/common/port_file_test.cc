#include "common/port_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace sluice {
namespace {

TEST(PortFileTest, HoldsEveryPort) {
  const std::string path = ::testing::TempDir() + "/ports.json";
  ASSERT_TRUE(WritePortFile(path, {{"http_port", 1}, {"grpc_port", 2}}).ok());
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  EXPECT_THAT(text.str(), ::testing::HasSubstr(", \"http_port\": 1, \"grpc_port\": 2}"));
  std::filesystem::remove(path);
}

TEST(PortFileTest, NamesThePathThatCannotBeWritten) {
  const absl::Status status = WritePortFile("/nonexistent/folder/ports", {});
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("/nonexistent/folder"));
}

}  // namespace
}  // namespace sluice
