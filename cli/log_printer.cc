#include "cli/log_printer.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace sluice::cli {
namespace {

constexpr int kColours[] = {36, 32, 33, 35, 34, 96, 92, 93, 95, 94};  // ANSI foregrounds
constexpr int kNumColours = sizeof(kColours) / sizeof(kColours[0]);

}  // namespace

LogPrinter::LogPrinter(int fd, bool colours, size_t name_width)
    : fd_(fd), colours_(colours), name_width_(name_width) {}

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
