#include "common/read_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace sluice {
namespace {

using ::testing::HasSubstr;

std::string WriteFile(const std::string& contents) {
  const std::string path = ::testing::TempDir() + "/read_file_test";
  std::ofstream(path, std::ios::binary) << contents;
  return path;
}

TEST(ReadFile, ReadsAllOfIt) {
  for (const size_t size : {0, 1, 65535, 65536, 65537, 1'000'000}) {
    std::string contents(size, 'x');
    if (size > 0) contents[size - 1] = '\0';
    EXPECT_EQ(*ReadFile(WriteFile(contents), 1'000'000), contents) << size;
  }
  EXPECT_THAT(*ReadFile("/proc/self/status", 1 << 20), HasSubstr("Name:"));
}

TEST(ReadFile, RefusesWhatIsLarger) {
  const absl::Status status = ReadFile(WriteFile(std::string(11, 'x')), 10).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("larger than 10 bytes"));
  EXPECT_TRUE(ReadFile(WriteFile(std::string(10, 'x')), 10).ok());
  EXPECT_FALSE(ReadFile("/dev/zero", 1 << 20).ok());
}

TEST(ReadFile, SaysWhyNot) {
  EXPECT_TRUE(absl::IsNotFound(ReadFile("/no/such/file", 10).status()));
  const absl::Status folder = ReadFile(::testing::TempDir(), 10).status();
  EXPECT_TRUE(absl::IsInvalidArgument(folder));
  EXPECT_THAT(std::string(folder.message()), HasSubstr("Is a directory"));
}

}  // namespace
}  // namespace sluice
