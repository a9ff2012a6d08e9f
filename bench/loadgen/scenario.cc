#include "bench/loadgen/scenario.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sluice::loadgen {
namespace {

// Other tokens than the workload's, so that warming up fills no prefix cache that is measured.
absl::StatusOr<std::vector<PlannedRequest>> WarmUp(const ScenarioOptions& options) {
  if (options.warm_up_requests == 0) return std::vector<PlannedRequest>();
  RandomWorkloadOptions workload = options.workload;
  workload.seed = ~options.workload.seed;
  workload.num_requests = options.warm_up_requests;
  workload.requests_per_second = 0;
  workload.output_tokens = std::min(workload.output_tokens, 16);
  return MakeRandomWorkload(workload);
}

absl::StatusOr<ScenarioRun> RandomRun(std::string name, double x, const ScenarioOptions& options) {
  ScenarioRun run;
  run.name = std::move(name);
  run.x = x;
  run.options = options.run;
  auto workload = MakeRandomWorkload(options.workload);
  if (!workload.ok()) return workload.status();
  run.workload = *std::move(workload);
  auto warm_up = WarmUp(options);
  if (!warm_up.ok()) return warm_up.status();
  run.warm_up = *std::move(warm_up);
  return run;
}

absl::StatusOr<Scenario> TtftScenario(ScenarioOptions options) {
  Scenario scenario{"Time to first token over prompt length", "prompt tokens", {}};
  options.run.concurrency = 1;
  options.run.open_loop = false;
  options.workload.output_tokens = 8;
  options.workload.num_requests = std::min(options.workload.num_requests, 10);
  for (int length = 16;; length *= 2) {
    const bool last = length + options.workload.output_tokens >= options.max_model_len;
    if (last) length = options.max_model_len - options.workload.output_tokens - 1;
    options.workload.prompt_tokens = length;
    options.workload.seed += 1;
    auto run = RandomRun(absl::StrCat("prompt ", length), length, options);
    if (!run.ok()) return run.status();
    scenario.runs.push_back(*std::move(run));
    if (last) return scenario;
  }
}

absl::StatusOr<Scenario> ConcurrencyScenario(ScenarioOptions options) {
  Scenario scenario{"Concurrency at 1,024-token prompts", "requests in flight", {}};
  options.run.open_loop = false;
  options.workload.prompt_tokens = std::min(1024, options.max_model_len / 2);
  for (const int concurrency : {10, 20, 30, 40, 50, 100}) {
    options.run.concurrency = concurrency;
    options.workload.num_requests = 2 * concurrency;
    options.workload.seed += 1;
    auto run = RandomRun(absl::StrCat("concurrency ", concurrency), concurrency, options);
    if (!run.ok()) return run.status();
    scenario.runs.push_back(*std::move(run));
  }
  return scenario;
}

absl::StatusOr<Scenario> CachedScenario(ScenarioOptions options) {
  Scenario scenario{"Uncached (1) against cached (2) prompts", "pass", {}};
  options.run.open_loop = false;
  options.run.concurrency = 1;
  options.workload.prompt_tokens = std::min(2048, options.max_model_len / 2);
  options.workload.num_requests = std::min(options.workload.num_requests, 8);
  for (const int pass : {1, 2}) {
    auto run = RandomRun(pass == 1 ? "uncached" : "cached", pass, options);
    if (!run.ok()) return run.status();
    if (pass == 2) run->warm_up.clear();
    scenario.runs.push_back(*std::move(run));
  }
  return scenario;
}

}  // namespace

Scenario SingleScenario(const ScenarioOptions& options, std::vector<PlannedRequest> workload,
                        std::string title) {
  Scenario scenario{std::move(title), "run", {}};
  ScenarioRun run;
  run.name =
      options.run.open_loop ? "open loop" : absl::StrCat("concurrency ", options.run.concurrency);
  run.x = options.run.concurrency;
  run.options = options.run;
  run.workload = std::move(workload);
  if (auto warm_up = WarmUp(options); warm_up.ok()) run.warm_up = *std::move(warm_up);
  scenario.runs.push_back(std::move(run));
  return scenario;
}

absl::StatusOr<Scenario> PresetScenario(const std::string& name, const ScenarioOptions& options) {
  if (name == "ttft") return TtftScenario(options);
  if (name == "concurrency") return ConcurrencyScenario(options);
  if (name == "cached") return CachedScenario(options);
  return absl::NotFoundError(
      absl::StrCat("preset '", name, "' is unknown; there are ttft, concurrency and cached"));
}

}  // namespace sluice::loadgen
