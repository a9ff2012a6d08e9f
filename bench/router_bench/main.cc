// What the router itself costs: CPU a request and an event, latency it adds, memory an open stream
// takes. Mock workers and clients run in this program; the router is the shipped one, a child of
// it, and only its own CPU time counts, so that the figures hold though all share the machine's
// cores.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/router_bench/report.h"
#include "bench/router_bench/scenario.h"
#include "bench/router_bench/token_ledger.h"
#include "common/log.h"
#include "common/progress_bar.h"

namespace sluice::bench {
namespace {

constexpr char kExamples[] =
    "Examples:\n"
    "  router_bench models/deepseek-tiny                      every scenario once\n"
    "  router_bench models/deepseek-tiny events --reps 5      one of them, median of five\n"
    "  router_bench models/deepseek-tiny streams -c 2000      with other numbers\n"
    "  router_bench models/deepseek-tiny --json router.json\n"
    "\n"
    "Columns: cores is the router's CPU seconds a second; answers and events per core-s are what\n"
    "one core of the router would do. answer50/99: request sent to answer complete. token50/99: a\n"
    "token leaving the mock worker to its event at the client. direct50/99: the same without a\n"
    "router; for a lone stream over a bare gRPC stream of the fleet protocol, in turns with the\n"
    "router's; for many over bare connections, just before, which carry direct/s. added50: the\n"
    "difference of the medians. idle: the router's memory for a stream on which nothing happens.\n"
    "The rest is the machine just before: cycles of one core; one way between two threads over\n"
    "loopback; and what a thread in between adds to that which only passes the bytes on.\n";

struct Flags {
  std::string model_dir;
  std::vector<std::string> names;
  std::string router;
  int reps = 1;
  double warm_up_seconds = 1;
  double window_seconds = 3;
  int num_connections = 0;
  int num_workers = 0;
  double tokens_per_second = 0;
  std::string json_path;
  bool quiet = false;
};

// The router built beside this program.
std::string DefaultRouter() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  return (self.parent_path() / "sluice-router").string();
}

std::vector<Scenario> Choose(const Flags& flags) {
  std::vector<Scenario> chosen;
  for (const Scenario& scenario : Scenarios()) {
    if (flags.names.empty() ||
        std::find(flags.names.begin(), flags.names.end(), scenario.name) != flags.names.end()) {
      chosen.push_back(scenario);
    }
  }
  for (Scenario& scenario : chosen) {
    if (flags.num_connections > 0) scenario.num_connections = flags.num_connections;
    if (flags.num_workers > 0) scenario.num_workers = flags.num_workers;
    if (flags.tokens_per_second > 0 && scenario.tokens_per_second > 0) {
      scenario.tokens_per_second = flags.tokens_per_second;
    }
  }
  return chosen;
}

absl::Status Run(const Flags& flags) {
  BenchTarget target;
  target.router = flags.router.empty() ? DefaultRouter() : flags.router;
  target.model_dir = flags.model_dir;
  target.warm_up = absl::Seconds(flags.warm_up_seconds);
  target.window = absl::Seconds(flags.window_seconds);

  const std::vector<Scenario> scenarios = Choose(flags);
  std::vector<Row> rows;
  for (const Scenario& scenario : scenarios) {
    Row row{scenario.name, scenario.num_connections, {}};
    for (int rep = 0; rep < flags.reps; ++rep) {
      const std::string what = absl::StrCat(scenario.name, " ", rep + 1, "/", flags.reps);
      const absl::StatusOr<Figures> figures = RunScenario(target, scenario, [&](double share) {
        if (!flags.quiet) ShowProgress(what, share);
      });
      ClearProgress();
      if (!figures.ok()) {
        return absl::Status(figures.status().code(),
                            absl::StrCat(scenario.name, ": ", figures.status().message()));
      }
      row.runs.push_back(*figures);
    }
    rows.push_back(std::move(row));
  }
  std::fputs(FormatTable(rows).c_str(), stdout);
  if (!flags.json_path.empty()) {
    std::ofstream file(flags.json_path);
    file << FormatJson(rows);
    if (!file.flush())
      return absl::UnavailableError(absl::StrCat("cannot write ", flags.json_path));
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("What the router itself costs, against workers that compute nothing.");
  std::vector<std::string> names;
  std::string help = "Which to run; none: all.";
  for (const Scenario& scenario : Scenarios()) {
    names.push_back(scenario.name);
    absl::StrAppend(&help, "\n", scenario.name, ": ", scenario.what);
  }
  app.add_option("model", flags.model_dir, "Folder of a model; only its tokenizer is used")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("scenario", flags.names, help)->check(CLI::IsMember(names));
  app.add_option("--router", flags.router, "The program to measure; unset: the one beside this");
  app.add_option("--reps", flags.reps, "Runs of each scenario; medians are printed")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--warm-up", flags.warm_up_seconds, "Seconds under load before the window")
      ->check(CLI::Range(0.0, 600.0))
      ->capture_default_str();
  app.add_option("--window", flags.window_seconds, "Seconds that count")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  app.add_option("-c,--connections", flags.num_connections, "Instead of the scenario's")
      ->check(CLI::Range(1, kMaxStreams));
  app.add_option("--workers", flags.num_workers, "Instead of the scenario's")
      ->check(CLI::Range(1, 1000));
  app.add_option("--rate", flags.tokens_per_second,
                 "Tokens a second of each stream, instead of the scenario's")
      ->check(CLI::Range(0.1, 1e6));
  app.add_option("--json", flags.json_path, "Also write every run's figures to a file");
  app.add_flag("-q,--quiet", flags.quiet, "No progress bar");
  app.footer(kExamples);
  CLI11_PARSE(app, argc, argv);
  InitLogging({"router_bench", LogLevel::kWarning, /*json=*/false});
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  std::fprintf(stderr, "router_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) { return sluice::bench::Main(argc, argv); }
