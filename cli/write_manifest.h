// What `sluice inspect MODEL --write-manifest` does. Main thread.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace sluice::cli {

// Hashes the model folder's files on all cores and lets the model answer a golden prompt, then
// writes both as sluice-manifest.json. Shows a bar on a terminal. Without the memory to run the
// model, the manifest has no golden answer, and a line says so.
absl::Status WriteModelManifest(const std::string& model_dir);

}  // namespace sluice::cli
