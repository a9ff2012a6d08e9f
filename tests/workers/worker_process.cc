#include "tests/workers/worker_process.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/time/clock.h"
#include "common/clock.h"

namespace sluice::testing {

WorkerProcess::WorkerProcess(const std::string& binary, const std::vector<std::string>& arguments) {
  std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  if (posix_spawn(&pid_, binary.c_str(), nullptr, nullptr, argv.data(), environ) != 0) {
    std::abort();
  }
}

WorkerProcess::~WorkerProcess() {
  if (pid_ <= 0) return;
  Signal(SIGCONT);
  Signal(SIGKILL);
  Wait(absl::Seconds(10));
}

void WorkerProcess::Signal(int signal) {
  if (pid_ > 0) kill(pid_, signal);
}

int WorkerProcess::Wait(absl::Duration timeout) {
  for (const absl::Time deadline = MonotonicNow() + timeout;;) {
    int status = 0;
    if (pid_ > 0 && waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    if (MonotonicNow() >= deadline) return -1;
    absl::SleepFor(absl::Milliseconds(10));
  }
}

}  // namespace sluice::testing
