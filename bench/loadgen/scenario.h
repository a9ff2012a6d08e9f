// A benchmark as a list of runs: a single one, or a preset that reproduces a table operators
// publish.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/loadgen/runner.h"
#include "bench/loadgen/workload.h"

namespace sluice::loadgen {

struct ScenarioRun {
  std::string name;
  double x = 0;
  std::vector<PlannedRequest> warm_up;  // sent first, not counted
  std::vector<PlannedRequest> workload;
  RunOptions options;
};

struct Scenario {
  std::string title;
  std::string x_label;
  std::vector<ScenarioRun> runs;
};

struct ScenarioOptions {
  RandomWorkloadOptions workload;
  RunOptions run;
  int warm_up_requests = 4;
  int max_model_len = 4096;  // of the server: presets stay below it
};

Scenario SingleScenario(const ScenarioOptions& options, std::vector<PlannedRequest> workload,
                        std::string title);

// Presets by name:
//   ttft         time to first token over prompt lengths 16, 32, ... one request at a time
//   concurrency  10, 20, 30, 40, 50, 100 requests in flight at 1,024-token prompts
//   cached       the same prompts for the first and for the second time
// NOT_FOUND lists them.
absl::StatusOr<Scenario> PresetScenario(const std::string& name, const ScenarioOptions& options);

}  // namespace sluice::loadgen
