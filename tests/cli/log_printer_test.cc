// What `sluice up` prints: lines of several processes, and one line of its own that stays below
// them.
#include "cli/log_printer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <string>

namespace sluice::cli {
namespace {

// A pair of pseudo-terminal ends; what is written to `user_end` can be read.
class LogPrinterOnTerminalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    reader_ = posix_openpt(O_RDWR | O_NOCTTY);
    ASSERT_GE(reader_, 0);
    ASSERT_EQ(grantpt(reader_), 0);
    ASSERT_EQ(unlockpt(reader_), 0);
    user_end_ = open(ptsname(reader_), O_RDWR | O_NOCTTY);
    ASSERT_GE(user_end_, 0);
    termios raw = {};
    tcgetattr(user_end_, &raw);
    cfmakeraw(&raw);
    tcsetattr(user_end_, TCSANOW, &raw);
    const winsize size = {.ws_row = 10, .ws_col = 20, .ws_xpixel = 0, .ws_ypixel = 0};
    ioctl(user_end_, TIOCSWINSZ, &size);
  }
  void TearDown() override {
    close(user_end_);
    close(reader_);
  }
  std::string Read() {
    char text[4096];
    const ssize_t got = read(reader_, text, sizeof(text));
    return got > 0 ? std::string(text, static_cast<size_t>(got)) : "";
  }

  int reader_ = -1;
  int user_end_ = -1;
};

TEST_F(LogPrinterOnTerminalTest, TheStatusStaysBelowTheLines) {
  LogPrinter printer(user_end_, /*colours=*/false, 6);
  printer.ShowStatus("waiting");
  EXPECT_EQ(Read(), "\r\x1b[Kwaiting");
  printer.PrintLine(0, "router", "hello");
  EXPECT_EQ(Read(), "\r\x1b[Krouter | hello\nwaiting");
  printer.ShowStatus("");
  EXPECT_EQ(Read(), "\r\x1b[K");
  printer.PrintOwn("ready");
  EXPECT_EQ(Read(), "\r\x1b[Kready\n");
}

TEST_F(LogPrinterOnTerminalTest, TheStatusNeverWraps) {
  LogPrinter printer(user_end_, /*colours=*/false, 6);
  printer.ShowStatus("waiting for very many workers");
  EXPECT_EQ(Read(), "\r\x1b[Kwaiting for very ma");
}

TEST(LogPrinter, AStatusIsALineNowAndThenWhereThereIsNoTerminal) {
  FILE* const file = tmpfile();
  LogPrinter printer(fileno(file), /*colours=*/false, 6);
  for (int percent = 0; percent < 100; ++percent) {
    printer.ShowStatus("loaded " + std::to_string(percent));
  }
  printer.PrintLine(0, "router", "hello");
  std::string text(4096, '\0');
  text.resize(static_cast<size_t>(pread(fileno(file), text.data(), text.size(), 0)));
  EXPECT_EQ(text, "loaded 0\nrouter | hello\n");
  fclose(file);
}

}  // namespace
}  // namespace sluice::cli
