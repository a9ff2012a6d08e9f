// Draws a series of runs as one SVG file: latency percentiles above, throughput below, over what
// was varied.
#pragma once

#include <string>
#include <vector>

#include "bench/loadgen/summary.h"

namespace sluice::loadgen {

// REQUIRES: runs are not empty. `x_label` says what Summary::x is.
std::string PlotSvg(const std::vector<Summary>& runs, const std::string& title,
                    const std::string& x_label);

}  // namespace sluice::loadgen
