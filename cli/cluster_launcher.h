// Runs a whole cluster on this machine as child processes: starts them in order, waits until they
// are ready, prints their logs, stops them in order. Everything on the calling thread, which must
// be the process's only one (it forks).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cli/child_process.h"
#include "cli/log_printer.h"
#include "cli/run_dir.h"

namespace sluice::cli {

struct ClusterOptions {
  std::string bin_dir;  // where sluice-router and the workers are
  std::string run_dir;
  std::string model_dir;
  std::string served_model_name;  // "": the router's default
  int num_prefill = 1;
  int num_decode = 1;
  int num_both = 0;
  std::string host = "127.0.0.1";  // of the public ports
  int http_port = 8000;            // 0: any free
  int grpc_port = 8001;
  int threads_per_worker = 1;
  std::string kv_cache_per_worker;       // as in configuration: "256MiB"
  std::vector<std::string> router_args;  // appended as they are
  std::vector<std::string> worker_args;
  absl::Duration ready_timeout = absl::Seconds(120);  // without any model being loaded further
  absl::Duration drain_timeout = absl::Seconds(25);   // of each worker
  absl::Duration stop_grace = absl::Seconds(10);      // beyond it; who has not ended then is killed
};

// How long a worker that has ended stays down, 1 to 30 s: soon started again, and ever later if it
// is not ready for a minute. `last`: the pause before, zero if it never ended.
absl::Duration NextRestartPause(absl::Duration last, absl::Duration was_ready_for);

class ClusterLauncher {
 public:
  ClusterLauncher(ClusterOptions options, LogPrinter* printer);
  ~ClusterLauncher();  // kills what still runs

  // Starts all processes and waits until every one is ready. On failure the status names the
  // process and holds its last lines; on a signal it is CANCELLED. Call Stop in any case.
  absl::Status Start();
  // Where the ready cluster listens.
  const ClusterInfo& info() const { return info_; }
  // Until SIGINT, SIGTERM or SIGHUP (OK), or the router ends by itself (an error). A worker that
  // ends is reported and, unless its exit code is 0, started again; the rest goes on.
  absl::Status Serve();
  // The longest that Stop takes.
  absl::Duration StopTimeout() const;
  // Workers first, so that they can drain while the router still delivers; then the router. Whoever
  // does not end in time is killed; a further signal kills all at once.
  void Stop();

 private:
  struct Child {
    std::vector<std::string> argv;
    std::unique_ptr<ChildProcess> process;
    std::string port_file;
    PortFile ports;
    bool is_router = false;
    absl::Time ready_since = absl::InfiniteFuture();
    bool is_ready() const { return ready_since != absl::InfiniteFuture(); }
    int loaded_percent = 0;  // the most that was seen
    bool end_reported = false;
    absl::Duration restart_pause;  // the last one; zero: none yet
    absl::Time restart_at;         // once its end is reported
  };

  absl::Status Spawn(const std::string& name, const std::string& program,
                     std::vector<std::string> args);
  absl::Status SpawnWorkers();
  // Pumps until `done` (checked after every event, and every 50 ms) returns true. CANCELLED on a
  // signal, DEADLINE_EXCEEDED naming `what` after `timeout` in which no model was loaded further,
  // or the error of a child that ended.
  absl::Status WaitUntil(const std::function<absl::StatusOr<bool>()>& done, absl::Duration timeout,
                         const std::string& what);
  absl::StatusOr<bool> HavePorts(Child* child);
  // Empty if it is ready, which is noted.
  absl::StatusOr<std::string> AskWhyNotReady(Child* child);
  absl::StatusOr<bool> AllReady();
  // Waits at most `timeout` for output, signals and ends of children, and prints what came.
  void Pump(absl::Duration timeout);
  void PlanRestart(Child* child);
  void Restart(Child* child);
  // Signals children for which `which` holds and waits for their end.
  void StopChildren(const std::function<bool(const Child&)>& which, absl::Duration timeout);
  static absl::Status EndedError(const Child& child);

  // Constant after construction.
  const ClusterOptions options_;
  LogPrinter* const printer_;
  int signal_fd_ = -1;

  std::vector<Child> children_;  // the router first
  ClusterInfo info_;
  int num_stop_signals_ = 0;
  std::string waiting_for_;
  absl::Time loaded_further_at_ = absl::InfinitePast();
};

}  // namespace sluice::cli
