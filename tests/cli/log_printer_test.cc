// What `sluice up` prints: lines of several processes, and one line of its own that stays below
// them.
#include "cli/log_printer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

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

// Ends the test program if the code under test waits.
class Alarm {
 public:
  explicit Alarm(unsigned seconds) { alarm(seconds); }
  ~Alarm() { alarm(0); }
};

std::string ReadAll(int fd) {
  std::string all;
  char text[4096];
  pollfd readable = {fd, POLLIN, 0};
  while (poll(&readable, 1, 100) > 0) {
    const ssize_t got = read(fd, text, sizeof(text));
    if (got <= 0) break;
    all.append(text, static_cast<size_t>(got));
  }
  return all;
}

// Of `num_lines` lines, each is there or counted as dropped; one that was cut off is not continued.
// The reader may make room at any time, so there may be several of them.
void ExpectLinesOrTheirCount(const std::string& text, const std::string& line, int num_lines) {
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  ASSERT_GE(lines.size(), 3u);
  EXPECT_EQ(lines.back(), "");
  lines.pop_back();
  EXPECT_EQ(lines.back(), "router | heard");
  lines.pop_back();
  int num_whole = 0;
  int num_dropped = 0;
  for (const std::string& found : lines) {
    int count = 0;
    int end = 0;
    sscanf(found.c_str(), "(%d lines were dropped: nobody read them)%n", &count, &end);
    if (found == line) {
      ++num_whole;
    } else if (end > 0) {
      num_dropped += count;
    } else {
      EXPECT_TRUE(absl::StartsWith(line, found) || absl::StartsWith(found, "("))
          << found.substr(0, 80);
    }
  }
  EXPECT_GT(num_dropped, 0);
  EXPECT_EQ(num_whole + num_dropped, num_lines);
}

// Far more than fits, then what is left of it for a reader that comes.
std::string PrintUnread(LogPrinter* printer, int reader, size_t line_bytes) {
  for (int i = 0; i < 100; ++i) printer->PrintLine(0, "router", std::string(line_bytes, 'x'));
  std::string text = ReadAll(reader);
  printer->PrintLine(0, "router", "heard");
  return text + ReadAll(reader);
}

std::string Line(size_t line_bytes) { return "router | " + std::string(line_bytes, 'x'); }

TEST_F(LogPrinterOnTerminalTest, NeverWaitsForAReader) {
  const Alarm alarm(20);
  LogPrinter printer(user_end_, /*colours=*/false, 6);
  for (const size_t line_bytes : {1000, 10'000, 100'000}) {
    const std::string text = PrintUnread(&printer, reader_, line_bytes);
    ExpectLinesOrTheirCount(absl::StrReplaceAll(text, {{"\r\x1b[K", ""}}), Line(line_bytes), 100);
  }
}

TEST(LogPrinter, NeverWaitsForAReaderOfItsPipe) {
  const Alarm alarm(20);
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  LogPrinter printer(ends[1], /*colours=*/false, 6);
  for (const size_t line_bytes : {1000, 10'000, 100'000}) {
    ExpectLinesOrTheirCount(PrintUnread(&printer, ends[0], line_bytes), Line(line_bytes), 100);
  }
  close(ends[0]);
  close(ends[1]);
}

TEST(LogPrinter, NeverWaitsForAReaderOfItsSocket) {
  const Alarm alarm(20);
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  LogPrinter printer(ends[1], /*colours=*/false, 6);
  for (const size_t line_bytes : {10'000, 100'000}) {
    ExpectLinesOrTheirCount(PrintUnread(&printer, ends[0], line_bytes), Line(line_bytes), 100);
  }
  close(ends[0]);
  printer.PrintLine(0, "router", "nobody");  // and no SIGPIPE
  close(ends[1]);
}

// A file that is reopened would be written from its beginning.
TEST(LogPrinter, AFileKeepsWhatItHad) {
  FILE* const file = tmpfile();
  ASSERT_EQ(write(fileno(file), "before\n", 7), 7);
  LogPrinter printer(fileno(file), /*colours=*/false, 6);
  printer.PrintLine(0, "router", "hello");
  std::string text(4096, '\0');
  text.resize(static_cast<size_t>(pread(fileno(file), text.data(), text.size(), 0)));
  EXPECT_EQ(text, "before\nrouter | hello\n");
  fclose(file);
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
