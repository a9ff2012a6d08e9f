#include "cli/cluster_launcher.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "cli/http_probe.h"
#include "cli/machine_share.h"
#include "common/clock.h"
#include "common/host_port.h"
#include "common/processors.h"
#include "common/progress_bar.h"
#include "common/status_macros.h"

namespace sluice::cli {
namespace {

constexpr absl::Duration kListenTimeout = absl::Seconds(20);
constexpr absl::Duration kProbeInterval = absl::Milliseconds(50);
constexpr absl::Duration kProbeTimeout = absl::Milliseconds(500);
constexpr absl::Duration kRouterStopTimeout = absl::Seconds(10);
constexpr absl::Duration kKillTimeout = absl::Seconds(5);
constexpr absl::Duration kFirstRestartPause = absl::Seconds(1);
constexpr absl::Duration kLongestRestartPause = absl::Seconds(30);
constexpr absl::Duration kLongLife = absl::Minutes(1);
constexpr int kBarWidth = 16;  // one a worker, side by side

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&set, number);
  return set;
}

// Of a worker that says why it is not ready; nullopt: something else than loading.
std::optional<int> LoadedPercent(absl::string_view reason) {
  reason = absl::StripAsciiWhitespace(reason);
  int percent = 0;
  if (!absl::ConsumePrefix(&reason, "loading the model, ") || !absl::ConsumeSuffix(&reason, "%") ||
      !absl::SimpleAtoi(reason, &percent)) {
    return std::nullopt;
  }
  return percent;
}

std::string Seconds(absl::Duration duration) {
  return absl::StrFormat("%.1f s", absl::ToDoubleSeconds(duration));
}

}  // namespace

absl::Duration NextRestartPause(absl::Duration last, absl::Duration was_ready_for) {
  if (last == absl::ZeroDuration() || was_ready_for >= kLongLife) return kFirstRestartPause;
  return std::min(2 * last, kLongestRestartPause);
}

ClusterLauncher::ClusterLauncher(ClusterOptions options, LogPrinter* printer)
    : options_(std::move(options)), printer_(printer) {
  const sigset_t set = StopSignals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

ClusterLauncher::~ClusterLauncher() {
  children_.clear();
  if (signal_fd_ >= 0) close(signal_fd_);
}

absl::Status ClusterLauncher::Spawn(const std::string& name, const std::string& program,
                                    std::vector<std::string> args) {
  Child child;
  child.port_file = absl::StrCat(options_.run_dir, "/", name, ".ports.json");
  child.is_router = children_.empty();
  child.argv = {absl::StrCat(options_.bin_dir, "/", program)};
  child.argv.insert(child.argv.end(), std::make_move_iterator(args.begin()),
                    std::make_move_iterator(args.end()));
  child.argv.push_back("--port-file");
  child.argv.push_back(child.port_file);
  SLUICE_ASSIGN_OR_RETURN(child.process, ChildProcess::Start(name, child.argv));
  children_.push_back(std::move(child));
  return absl::OkStatus();
}

absl::Status ClusterLauncher::SpawnWorkers() {
  const std::string fleet_address = absl::StrCat("127.0.0.1:", children_[0].ports.fleet_port);
  const int num_threads = (options_.num_prefill + options_.num_decode + options_.num_both) *
                          options_.threads_per_worker;
  const int prefill_niceness = PrefillNiceness(num_threads, AvailableProcessors());
  const auto spawn = [&](const std::string& role, int count) -> absl::Status {
    for (int i = 0; i < count; ++i) {
      const std::string name = absl::StrCat(role, "-", i);
      std::vector<std::string> args = {
          "--model",   options_.model_dir, "--role",
          role,        "--worker-id",      name,
          "--routers", fleet_address,      "--admin-port",
          "0",         "--threads",        absl::StrCat(options_.threads_per_worker)};
      args.insert(args.end(),
                  {"--drain-timeout",
                   absl::StrCat(absl::ToInt64Milliseconds(options_.drain_timeout), "ms")});
      if (!options_.kv_cache_per_worker.empty()) {
        args.insert(args.end(), {"--kv-cache", options_.kv_cache_per_worker});
      }
      if (!options_.served_model_name.empty()) {
        args.insert(args.end(), {"--served-model-name", options_.served_model_name});
      }
      if (role == "prefill") {
        args.insert(args.end(), {"--compute-niceness", absl::StrCat(prefill_niceness)});
      }
      args.insert(args.end(), options_.worker_args.begin(), options_.worker_args.end());
      const char* const program =
          role == "prefill" ? "sluice-prefill-worker" : "sluice-decode-worker";
      SLUICE_RETURN_IF_ERROR(Spawn(name, program, std::move(args)));
    }
    return absl::OkStatus();
  };
  SLUICE_RETURN_IF_ERROR(spawn("prefill", options_.num_prefill));
  SLUICE_RETURN_IF_ERROR(spawn("decode", options_.num_decode));
  return spawn("both", options_.num_both);
}

absl::Status ClusterLauncher::Start() {
  const absl::Time begin = MonotonicNow();
  std::vector<std::string> args = {"--model",      options_.model_dir,
                                   "--http-host",  options_.host,
                                   "--http-port",  absl::StrCat(options_.http_port),
                                   "--grpc-host",  options_.host,
                                   "--grpc-port",  absl::StrCat(options_.grpc_port),
                                   "--fleet-port", "0",
                                   "--admin-port", "0"};
  if (!options_.served_model_name.empty()) {
    args.insert(args.end(), {"--served-model-name", options_.served_model_name});
  }
  args.insert(args.end(), options_.router_args.begin(), options_.router_args.end());
  SLUICE_RETURN_IF_ERROR(Spawn("router", "sluice-router", std::move(args)));
  SLUICE_RETURN_IF_ERROR(
      WaitUntil([&] { return HavePorts(&children_[0]); }, kListenTimeout, "the router to listen"));
  const PortFile& router = children_[0].ports;
  info_.pid = getpid();
  info_.stop_timeout = StopTimeout();
  info_.http_address = JoinHostPort(options_.host, router.http_port);
  info_.grpc_address = JoinHostPort(options_.host, router.grpc_port);
  info_.admin_address = absl::StrCat("127.0.0.1:", router.admin_port);

  SLUICE_RETURN_IF_ERROR(SpawnWorkers());
  const absl::Status ready =
      WaitUntil([&] { return AllReady(); }, options_.ready_timeout, "the cluster to be ready");
  printer_->ShowStatus("");
  SLUICE_RETURN_IF_ERROR(ready);
  printer_->PrintOwn(absl::StrCat("ready after ", Seconds(MonotonicNow() - begin)));
  return absl::OkStatus();
}

absl::Status ClusterLauncher::WaitUntil(const std::function<absl::StatusOr<bool>()>& done,
                                        absl::Duration timeout, const std::string& what) {
  const absl::Time begin = MonotonicNow();
  while (true) {
    Pump(kProbeInterval);
    if (num_stop_signals_ > 0) return absl::CancelledError("interrupted");
    for (Child& child : children_) {
      if (!child.process->has_ended()) continue;
      Pump(absl::ZeroDuration());  // its last words
      child.end_reported = true;
      return EndedError(child);
    }
    SLUICE_ASSIGN_OR_RETURN(const bool is_done, done());
    if (is_done) return absl::OkStatus();
    if (MonotonicNow() > std::max(begin, loaded_further_at_) + timeout) {
      return absl::DeadlineExceededError(absl::StrCat(
          "gave up waiting for ", what, waiting_for_.empty() ? "" : ": ", waiting_for_));
    }
  }
}

absl::StatusOr<bool> ClusterLauncher::HavePorts(Child* child) {
  SLUICE_ASSIGN_OR_RETURN(const std::optional<PortFile> ports, ReadPortFile(child->port_file));
  if (ports.has_value()) child->ports = *ports;
  return ports.has_value();
}

absl::StatusOr<std::string> ClusterLauncher::AskWhyNotReady(Child* child) {
  SLUICE_ASSIGN_OR_RETURN(const bool listens, HavePorts(child));
  if (!listens) return "loads";
  const absl::StatusOr<ProbeAnswer> answer =
      ProbeHttp(child->ports.admin_port, "/readyz", kProbeTimeout);
  if (answer.ok() && answer->http_status == 200) {
    child->ready_since = MonotonicNow();
    return "";
  }
  const std::string reason = answer.ok() ? answer->body : std::string(answer.status().message());
  const std::optional<int> percent = LoadedPercent(reason);
  if (!percent.has_value()) return absl::StrCat("(", reason, ")");
  if (*percent > child->loaded_percent) loaded_further_at_ = MonotonicNow();
  child->loaded_percent = std::max(child->loaded_percent, *percent);
  return absl::StrCat("loads ", ProgressBar(*percent / 100.0, kBarWidth));
}

absl::StatusOr<bool> ClusterLauncher::AllReady() {
  std::vector<std::string> waiting;
  // The router last: it is ready only through the workers.
  for (size_t i = children_.size(); i-- > 0;) {
    Child& child = children_[i];
    if (child.is_ready()) continue;
    SLUICE_ASSIGN_OR_RETURN(const std::string reason, AskWhyNotReady(&child));
    if (!reason.empty()) waiting.push_back(absl::StrCat(child.process->name(), " ", reason));
  }
  waiting_for_ = absl::StrJoin(waiting, ", ");
  printer_->ShowStatus(waiting.empty() ? "" : absl::StrCat("waiting for ", waiting_for_));
  return waiting.empty();
}

absl::Status ClusterLauncher::EndedError(const Child& child) {
  std::string message =
      absl::StrCat(child.process->name(), " ended with ", child.process->HowItEnded());
  if (!child.process->last_lines().empty()) {
    absl::StrAppend(&message, "; its last lines:\n  ",
                    absl::StrJoin(child.process->last_lines(), "\n  "));
  }
  return absl::AbortedError(message);
}

void ClusterLauncher::Pump(absl::Duration timeout) {
  std::vector<pollfd> fds = {{signal_fd_, POLLIN, 0}};
  for (const Child& child : children_) {
    fds.push_back({child.process->output_fd(), POLLIN, 0});  // -1 is ignored by poll
  }
  poll(fds.data(), fds.size(), static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    if (info.ssi_signo != SIGCHLD) ++num_stop_signals_;
  }
  for (size_t i = 0; i < children_.size(); ++i) {
    children_[i].process->ReadOutput([&](absl::string_view line) {
      printer_->PrintLine(static_cast<int>(i), children_[i].process->name(), line);
    });
  }
}

absl::Status ClusterLauncher::Serve() {
  while (true) {
    // A signal or output wakes it; the limit covers what neither announces.
    Pump(absl::Seconds(1));
    if (num_stop_signals_ > 0) return absl::OkStatus();
    for (Child& child : children_) {
      if (!child.process->has_ended()) {
        if (child.is_ready()) continue;
        const absl::StatusOr<std::string> reason = AskWhyNotReady(&child);
        if (reason.ok() && reason->empty()) {
          printer_->PrintOwn(absl::StrCat(child.process->name(), " is ready again"));
        }
      } else if (child.is_router) {
        child.end_reported = true;
        return EndedError(child);
      } else if (!std::exchange(child.end_reported, true)) {
        PlanRestart(&child);
      } else if (MonotonicNow() >= child.restart_at) {
        Restart(&child);
      }
    }
  }
}

void ClusterLauncher::PlanRestart(Child* child) {
  const std::string ended =
      absl::StrCat(child->process->name(), " ended with ", child->process->HowItEnded());
  if (child->process->EndedWell()) {  // somebody asked it to
    child->restart_at = absl::InfiniteFuture();
    printer_->PrintOwn(absl::StrCat(ended, "; the others go on"));
    return;
  }
  const absl::Time now = MonotonicNow();
  child->restart_pause = NextRestartPause(
      child->restart_pause, child->is_ready() ? now - child->ready_since : absl::ZeroDuration());
  child->restart_at = now + child->restart_pause;
  printer_->PrintOwn(
      absl::StrCat(ended, "; it is started again in ", absl::FormatDuration(child->restart_pause)));
}

void ClusterLauncher::Restart(Child* child) {
  unlink(child->port_file.c_str());  // of the one that has ended
  absl::StatusOr<std::unique_ptr<ChildProcess>> process =
      ChildProcess::Start(child->process->name(), child->argv);
  if (!process.ok()) {
    printer_->PrintOwn(absl::StrCat(process.status().message(), "; trying again in ",
                                    absl::FormatDuration(kLongestRestartPause)));
    child->restart_at = MonotonicNow() + kLongestRestartPause;
    return;
  }
  child->process = *std::move(process);
  child->ready_since = absl::InfiniteFuture();
  child->loaded_percent = 0;
  child->end_reported = false;
}

void ClusterLauncher::StopChildren(const std::function<bool(const Child&)>& which,
                                   absl::Duration timeout) {
  const auto running = [&] {
    std::vector<std::string> names;
    for (Child& child : children_) {
      if (which(child) && !child.process->has_ended()) names.push_back(child.process->name());
    }
    return names;
  };
  const auto signal_all = [&](int number) {
    for (Child& child : children_) {
      if (which(child)) child.process->Signal(number);
    }
  };
  signal_all(SIGTERM);
  absl::Time deadline = MonotonicNow() + timeout;
  bool killed = false;
  while (!running().empty()) {
    Pump(absl::Milliseconds(50));
    const bool impatient = num_stop_signals_ > 1;
    if (MonotonicNow() < deadline && (killed || !impatient)) continue;
    if (killed) break;  // not even SIGKILL within its time: stuck in the kernel
    if (!running().empty()) {
      printer_->PrintOwn(absl::StrCat("killing ", absl::StrJoin(running(), ", ")));
    }
    signal_all(SIGKILL);
    killed = true;
    deadline = MonotonicNow() + kKillTimeout;
  }
  Pump(absl::ZeroDuration());
}

absl::Duration ClusterLauncher::StopTimeout() const {
  return options_.drain_timeout + options_.stop_grace + kRouterStopTimeout + 2 * kKillTimeout;
}

void ClusterLauncher::Stop() {
  if (children_.empty()) return;
  printer_->PrintOwn("stopping (again Ctrl-C: at once)");
  StopChildren([](const Child& child) { return !child.is_router; },
               options_.drain_timeout + options_.stop_grace);
  StopChildren([](const Child& child) { return child.is_router; }, kRouterStopTimeout);
  printer_->PrintOwn("stopped");
}

}  // namespace sluice::cli
