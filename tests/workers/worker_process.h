// A worker program as a child process, for tests. Killed and reaped at the end, whatever happened.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace sluice::testing {

class WorkerProcess {
 public:
  // `binary` with `arguments`; its log goes to this process's stderr. Aborts when it cannot be
  // started.
  WorkerProcess(const std::string& binary, const std::vector<std::string>& arguments);
  ~WorkerProcess();
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  void Signal(int signal);
  // Exit status, or 128 + signal, or -1 when it still runs after `timeout`.
  int Wait(absl::Duration timeout);

 private:
  pid_t pid_ = -1;
};

}  // namespace sluice::testing
