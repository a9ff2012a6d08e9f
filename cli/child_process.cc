#include "cli/child_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::cli {
namespace {

constexpr size_t kMaxLastLines = 20;

struct Pipe {
  int read_end = -1;
  int write_end = -1;
};

absl::Status OpenPipe(Pipe* out) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::InternalError(absl::StrCat("pipe: ", strerror(errno)));
  }
  *out = {ends[0], ends[1]};
  return absl::OkStatus();
}

// In the child, between fork and exec: only async-signal-safe calls. Reports errno through
// `error_fd`, which exec closes on success.
[[noreturn]] void ExecChild(char* const* argv, int output_fd, int error_fd, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // it died before the line above
  setpgid(0, 0);
  // Blocked and ignored signals outlive exec.
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  const int null_fd = open("/dev/null", O_RDONLY);
  if (null_fd >= 0) dup2(null_fd, STDIN_FILENO);
  dup2(output_fd, STDOUT_FILENO);
  dup2(output_fd, STDERR_FILENO);
  execv(argv[0], argv);
  const int error = errno;
  (void)!write(error_fd, &error, sizeof(error));
  _exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(
    std::string name, const std::vector<std::string>& argv) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);

  Pipe output;
  Pipe error;
  if (absl::Status status = OpenPipe(&output); !status.ok()) return status;
  if (absl::Status status = OpenPipe(&error); !status.ok()) {
    close(output.read_end);
    close(output.write_end);
    return status;
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) ExecChild(arguments.data(), output.write_end, error.write_end, parent);
  const int fork_error = errno;
  close(output.write_end);
  close(error.write_end);
  int exec_error = 0;
  if (pid > 0) {
    ssize_t got;
    do {
      got = read(error.read_end, &exec_error, sizeof(exec_error));
    } while (got < 0 && errno == EINTR);
  }
  close(error.read_end);
  if (pid < 0 || exec_error != 0) {
    close(output.read_end);
    if (pid > 0) waitpid(pid, nullptr, 0);
    return absl::FailedPreconditionError(
        absl::StrCat("cannot start ", argv[0], ": ", strerror(pid < 0 ? fork_error : exec_error)));
  }
  fcntl(output.read_end, F_SETFL, O_NONBLOCK);
  return std::unique_ptr<ChildProcess>(new ChildProcess(std::move(name), pid, output.read_end));
}

ChildProcess::~ChildProcess() {
  if (!has_ended()) {
    kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  if (output_fd_ >= 0) close(output_fd_);
}

void ChildProcess::EmitLine(absl::string_view line,
                            const std::function<void(absl::string_view)>& on_line) {
  last_lines_.emplace_back(line);
  if (last_lines_.size() > kMaxLastLines) last_lines_.pop_front();
  on_line(line);
}

void ChildProcess::ReadOutput(const std::function<void(absl::string_view)>& on_line) {
  char buffer[8192];
  while (output_fd_ >= 0) {
    const ssize_t got = read(output_fd_, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      close(output_fd_);
      output_fd_ = -1;
      if (!partial_line_.empty()) EmitLine(std::exchange(partial_line_, ""), on_line);
      return;
    }
    for (const char c : absl::string_view(buffer, static_cast<size_t>(got))) {
      if (c != '\n') partial_line_.push_back(c);
      if (c == '\n' || partial_line_.size() >= kMaxLineBytes) {
        EmitLine(std::exchange(partial_line_, ""), on_line);
      }
    }
  }
}

bool ChildProcess::has_ended() {
  if (wait_status_.has_value()) return true;
  int status = 0;
  pid_t reaped;
  do {
    reaped = waitpid(pid_, &status, WNOHANG);
  } while (reaped < 0 && errno == EINTR);
  if (reaped == pid_) wait_status_ = status;
  return wait_status_.has_value();
}

std::string ChildProcess::HowItEnded() const {
  const int status = wait_status_.value_or(0);
  if (WIFSIGNALED(status)) {
    return absl::StrCat("signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)), ")");
  }
  return absl::StrCat("exit code ", WEXITSTATUS(status));
}

bool ChildProcess::EndedWell() const {
  const int status = wait_status_.value_or(0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void ChildProcess::Signal(int number) {
  if (!has_ended()) kill(pid_, number);
}

}  // namespace sluice::cli
