// sluice down: stops the cluster that `sluice up` runs.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/run_dir.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace sluice::cli {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(1);

bool WaitForEnd(const std::string& run_dir, absl::Duration timeout) {
  const absl::Time begin = MonotonicNow();
  bool told = false;
  while (RunDirLock::IsHeld(run_dir)) {
    const absl::Duration waited = MonotonicNow() - begin;
    if (waited > timeout) return false;
    if (waited > kPatience && !std::exchange(told, true)) {
      std::cerr << "answers are being finished; it stops within "
                << absl::FormatDuration(absl::Trunc(timeout, absl::Seconds(1))) << std::endl;
    }
    absl::SleepFor(absl::Milliseconds(50));
  }
  return true;
}

// `timeout`: unset, what the cluster itself says that it may take, and a little more.
absl::Status Down(const std::string& run_dir, std::optional<absl::Duration> timeout) {
  const absl::StatusOr<ClusterInfo> info = ReadClusterInfo(run_dir);
  if (absl::IsNotFound(info.status())) {
    return absl::NotFoundError(absl::StrCat(info.status().message(),
                                            " (a cluster started elsewhere: name its --run-dir)"));
  }
  SLUICE_RETURN_IF_ERROR(info.status());
  kill(info->pid, SIGTERM);
  if (WaitForEnd(run_dir, timeout.value_or(info->stop_timeout + absl::Seconds(5)))) {
    return absl::OkStatus();
  }
  // Its children die with it.
  kill(info->pid, SIGKILL);
  if (WaitForEnd(run_dir, absl::Seconds(5))) {
    return absl::DeadlineExceededError("it did not stop in time and was killed");
  }
  return absl::InternalError(absl::StrCat("process ", info->pid, " cannot be stopped"));
}

}  // namespace

void AddDown(CLI::App* app, int* exit_code) {
  CLI::App* const down = app->add_subcommand("down", "Stop the cluster that `sluice up` runs");
  auto run_dir = std::make_shared<std::string>(DefaultRunDir());
  auto timeout_seconds = std::make_shared<std::optional<double>>();
  down->add_option("--run-dir", *run_dir, "The --run-dir of its `sluice up`")
      ->capture_default_str();
  down->add_option("--timeout", *timeout_seconds,
                   "Seconds after which it is killed; by its --drain-timeout if not given")
      ->check(CLI::Range(0.0, 86400.0));
  down->footer(
      "Requests that run are finished first, as far as the --drain-timeout of its `sluice up` "
      "allows.");
  down->callback([run_dir, timeout_seconds, exit_code] {
    std::optional<absl::Duration> timeout;
    if (timeout_seconds->has_value()) timeout = absl::Seconds(**timeout_seconds);
    const absl::Status status = Down(*run_dir, timeout);
    *exit_code = status.ok() ? 0 : Fail(status);
    if (status.ok()) std::cout << "stopped" << std::endl;
  });
}

}  // namespace sluice::cli
