// GetStatus as a table for people. Pure, any thread.
#pragma once

#include <string>

#include "sluice/v1/generation.pb.h"

namespace sluice::cli {

// One line per worker, one per transport, and a summary; columns aligned, control characters shown
// as replacements.
std::string FormatStatus(const v1::GetStatusResponse& status);

}  // namespace sluice::cli
