// Prints the children's log lines on the terminal, each after its process's name, in its own
// colour, above one line that says what the launcher waits for. One thread. Never waits for a
// reader that does not read: lines are dropped and counted instead, so a stopped terminal cannot
// stop a cluster. (Where a terminal or pipe cannot be opened anew, such as another user's, a line
// that fits only in part still waits.)
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace sluice::cli {

class LogPrinter {
 public:
  // Writes to `fd`, which must outlive this. Colours only if asked.
  LogPrinter(int fd, bool colours, size_t name_width);
  ~LogPrinter();
  LogPrinter(const LogPrinter&) = delete;
  LogPrinter& operator=(const LogPrinter&) = delete;

  // `index` chooses the colour.
  void PrintLine(int index, absl::string_view name, absl::string_view line);
  // A line of the launcher itself.
  void PrintOwn(absl::string_view line);
  // On a terminal: the last line, redrawn in place, cut to the terminal's width; "" ends it.
  // Elsewhere an own line, now and then.
  void ShowStatus(const std::string& status);

 private:
  void Write(const std::string& text);
  // Returns how many bytes did.
  size_t WriteWhatFits(absl::string_view text) const;
  std::string DrawnStatus() const;

  const int fd_;
  const int reopened_fd_;  // the same terminal or pipe, without waiting; -1: none
  const bool is_socket_;
  const bool is_terminal_;
  const bool colours_;
  const size_t name_width_;
  int64_t num_dropped_lines_ = 0;
  bool in_line_ = false;  // the last line was cut off
  std::string status_;
  absl::Time next_status_line_ = absl::InfinitePast();  // where it is not a terminal
};

// Colours are for terminals, and for nobody who has set NO_COLOR (no-color.org).
bool WantsColours(int fd);

}  // namespace sluice::cli
