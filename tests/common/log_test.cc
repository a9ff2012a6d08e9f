// Log lines go to standard error, but nobody waits for its reader.
#include "common/log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <string>

namespace sluice {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

// A pipe in the place of standard error.
class LogTest : public ::testing::Test {
 protected:
  LogTest() : real_(dup(STDERR_FILENO)) {
    EXPECT_EQ(pipe(pipe_), 0);
    EXPECT_EQ(fcntl(pipe_[0], F_SETFL, O_NONBLOCK), 0);
    dup2(pipe_[1], STDERR_FILENO);
  }
  ~LogTest() override {
    dup2(real_, STDERR_FILENO);
    for (int fd : {real_, pipe_[0], pipe_[1]}) close(fd);
  }
  std::string Read() {
    std::string text(1 << 17, '\0');
    const ssize_t size_bytes = read(pipe_[0], text.data(), text.size());
    text.resize(size_bytes < 0 ? 0 : static_cast<size_t>(size_bytes));
    return text;
  }

  const int real_;
  int pipe_[2];
};

TEST_F(LogTest, OneLineAMessage) {
  SLUICE_LOG(Info) << "seven is " << 7;
  EXPECT_THAT(Read(), EndsWith("I sluice: seven is 7\n"));
}

// Without the care this never ends.
TEST_F(LogTest, NobodyWaitsForAPipeThatIsNotRead) {
  for (int i = 0; i < 20000; ++i) SLUICE_LOG(Info) << "line " << i;
  const std::string first = Read();
  EXPECT_THAT(first, HasSubstr("line 0\n"));
  EXPECT_THAT(first, Not(HasSubstr("line 19999\n")));
  SLUICE_LOG(Info) << "somebody reads again";
  const std::string then = Read();
  EXPECT_THAT(then, HasSubstr("lines were not logged"));
  EXPECT_THAT(then, EndsWith("somebody reads again\n"));
  SLUICE_LOG(Info) << "and on";
  EXPECT_THAT(Read(), Not(HasSubstr("not logged")));
}

TEST_F(LogTest, ALongMessageIsCutBetweenCharacters) {
  std::string text = "x";
  while (text.size() < 100000) text += "\xc3\xa9";
  SLUICE_LOG(Info) << text;
  const std::string line = Read();
  EXPECT_LT(line.size(), 4096u);
  EXPECT_THAT(line, EndsWith("\xc3\xa9...\n"));
}

// The last test: the format stays.
TEST_F(LogTest, AnObjectALineFitsAPipeTooAndIsCutOutsideOfEscapes) {
  LogOptions options;
  options.json = true;
  InitLogging(options);
  SLUICE_LOG(Info) << std::string(100000, '"');
  const std::string line = Read();
  EXPECT_LT(line.size(), 4096u);
  EXPECT_THAT(line, EndsWith("\\\"...\"}\n"));
  EXPECT_EQ(std::count(line.begin(), line.end(), '\\') % 2, 0);
}

}  // namespace
}  // namespace sluice
