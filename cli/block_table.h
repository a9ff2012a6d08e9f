// Who holds the KV blocks of each worker, as a table for people. Pure, any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice::cli {

struct WorkerBlocks {
  std::string worker_id;
  std::string address;               // of the admin port that was asked
  absl::StatusOr<std::string> json;  // its /blocks: services/worker_runtime/block_report.h
};

// Per worker a line of totals and one line a holder, largest first; control characters shown as
// replacements. A worker that could not be asked, or answered something else, has a line that says
// so.
std::string FormatBlocks(const std::vector<WorkerBlocks>& workers);

// {"workers": [each worker's object, or {"worker_id", "error"}]}, on one line.
std::string BlocksToJson(const std::vector<WorkerBlocks>& workers);

}  // namespace sluice::cli
