#include "cli/log_printer.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/clock.h"

namespace sluice::cli {
namespace {

constexpr int kColours[] = {36, 32, 33, 35, 34, 96, 92, 93, 95, 94};  // ANSI foregrounds
constexpr int kNumColours = sizeof(kColours) / sizeof(kColours[0]);
constexpr absl::Duration kStatusLineInterval = absl::Seconds(5);
constexpr char kClearLine[] = "\r\x1b[K";

}  // namespace

LogPrinter::LogPrinter(int fd, bool colours, size_t name_width)
    : fd_(fd), is_terminal_(isatty(fd) == 1), colours_(colours), name_width_(name_width) {}

void LogPrinter::PrintLine(int index, absl::string_view name, absl::string_view line) {
  std::string prefix(name);
  prefix.resize(std::max(name_width_, prefix.size()), ' ');
  prefix += " | ";
  if (colours_)
    prefix = absl::StrCat("\x1b[", kColours[index % kNumColours], "m", prefix, "\x1b[0m");
  Write(absl::StrCat(prefix, line, "\n"));
}

void LogPrinter::PrintOwn(absl::string_view line) {
  Write(colours_ ? absl::StrCat("\x1b[1m", line, "\x1b[0m\n") : absl::StrCat(line, "\n"));
}

void LogPrinter::ShowStatus(const std::string& status) {
  if (status == status_) return;
  status_ = status;
  if (is_terminal_) return Write("");
  if (status.empty() || MonotonicNow() < next_status_line_) return;
  next_status_line_ = MonotonicNow() + kStatusLineInterval;
  PrintOwn(status);
}

std::string LogPrinter::DrawnStatus() const {
  winsize size = {};
  const bool knows_width = ioctl(fd_, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return status_.substr(0, knows_width ? size.ws_col - 1 : 79);
}

void LogPrinter::Write(const std::string& text) {
  pollfd writable = {fd_, POLLOUT, 0};
  if (poll(&writable, 1, 0) <= 0 || (writable.revents & POLLOUT) == 0) {
    ++num_dropped_lines_;
    return;
  }
  std::string whole;
  if (num_dropped_lines_ > 0) {
    whole = absl::StrCat("(", num_dropped_lines_, " lines were dropped: nobody read them)\n");
    num_dropped_lines_ = 0;
  }
  whole += text;
  if (is_terminal_) whole = absl::StrCat(kClearLine, whole, DrawnStatus());
  for (size_t done = 0; done < whole.size();) {
    const ssize_t written = write(fd_, whole.data() + done, whole.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    done += static_cast<size_t>(written);
  }
}

bool WantsColours(int fd) {
  const char* const no_color = getenv("NO_COLOR");
  const char* const term = getenv("TERM");
  return isatty(fd) && (no_color == nullptr || *no_color == '\0') &&
         (term == nullptr || absl::string_view(term) != "dumb");
}

}  // namespace sluice::cli
