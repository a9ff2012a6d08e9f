#include "cli/log_printer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
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

// O_NONBLOCK belongs to the open file, which the shell and the other programs of a pipeline share:
// a pipe or a terminal is opened anew for it. -1 for what cannot be, and for files, which never
// make one wait and would be written from their beginning.
int ReopenWithoutWaiting(int fd) {
  struct stat status = {};
  if (fstat(fd, &status) != 0 || !(S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode))) return -1;
  return open(absl::StrCat("/proc/self/fd/", fd).c_str(),
              O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

bool IsSocket(int fd) {
  struct stat status = {};
  return fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode);
}

}  // namespace

LogPrinter::LogPrinter(int fd, bool colours, size_t name_width)
    : fd_(fd),
      reopened_fd_(ReopenWithoutWaiting(fd)),
      is_socket_(IsSocket(fd)),
      is_terminal_(isatty(fd) == 1),
      colours_(colours),
      name_width_(name_width) {}

LogPrinter::~LogPrinter() {
  if (reopened_fd_ >= 0) close(reopened_fd_);
}

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
  std::string whole;
  if (in_line_) whole = colours_ ? "\x1b[0m\n" : "\n";
  if (is_terminal_) whole += kClearLine;
  if (num_dropped_lines_ > 0) {
    absl::StrAppend(&whole, "(", num_dropped_lines_, " lines were dropped: nobody read them)\n");
  }
  const size_t text_begin = whole.size();
  whole += text;
  const size_t text_end = whole.size();
  if (is_terminal_) whole += DrawnStatus();

  const size_t done = WriteWhatFits(whole);
  if (done > 0 && done >= text_begin) num_dropped_lines_ = 0;
  if (done < text_end && !text.empty()) ++num_dropped_lines_;
  if (done > 0) in_line_ = done < text_end && whole[done - 1] != '\n';
}

size_t LogPrinter::WriteWhatFits(absl::string_view text) const {
  if (reopened_fd_ < 0 && !is_socket_) {  // the best that can be said of it
    pollfd writable = {fd_, POLLOUT, 0};
    if (poll(&writable, 1, 0) <= 0 || (writable.revents & POLLOUT) == 0) return 0;
  }
  size_t done = 0;
  while (done < text.size()) {
    const char* const rest = text.data() + done;
    const size_t size = text.size() - done;
    const ssize_t written = is_socket_ ? send(fd_, rest, size, MSG_DONTWAIT | MSG_NOSIGNAL)
                                       : write(reopened_fd_ >= 0 ? reopened_fd_ : fd_, rest, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;
    done += static_cast<size_t>(written);
  }
  return done;
}

bool WantsColours(int fd) {
  const char* const no_color = getenv("NO_COLOR");
  const char* const term = getenv("TERM");
  return isatty(fd) && (no_color == nullptr || *no_color == '\0') &&
         (term == nullptr || absl::string_view(term) != "dumb");
}

}  // namespace sluice::cli
