// One child program: started with its output in a pipe, watched, signalled, reaped. One thread.
//
// A child dies with this process (PR_SET_PDEATHSIG), gets no terminal signals (a process group of
// its own) and reads /dev/null.
#pragma once

#include <sys/types.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice::cli {

class ChildProcess {
 public:
  // `argv[0]` is the program's path; an error to execute it is returned here.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(std::string name,
                                                             const std::vector<std::string>& argv);
  ~ChildProcess();  // kills and reaps it if it still runs
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  const std::string& name() const { return name_; }
  pid_t pid() const { return pid_; }

  // To wait on for output; -1 once the child has closed it.
  int output_fd() const { return output_fd_; }
  // Hands every line that is there to `on_line`, without its end; never waits. Lines longer than
  // kMaxLineBytes come in parts.
  void ReadOutput(const std::function<void(absl::string_view)>& on_line);
  static constexpr size_t kMaxLineBytes = 16384;
  // The last lines that ReadOutput saw.
  const std::deque<std::string>& last_lines() const { return last_lines_; }

  // Reaps the child if it has ended. Never waits.
  bool has_ended();
  // "exit code 3" or "signal 9 (Killed)". REQUIRES: has_ended().
  std::string HowItEnded() const;
  bool EndedWell() const;  // with exit code 0. REQUIRES: has_ended().
  void Signal(int number);

 private:
  ChildProcess(std::string name, pid_t pid, int output_fd)
      : name_(std::move(name)), pid_(pid), output_fd_(output_fd) {}
  void EmitLine(absl::string_view line, const std::function<void(absl::string_view)>& on_line);

  const std::string name_;
  const pid_t pid_;
  int output_fd_;
  std::string partial_line_;
  std::deque<std::string> last_lines_;
  std::optional<int> wait_status_;
};

}  // namespace sluice::cli
