// The release this binary was built from, as in `sluice --version` and the build_info metric.
#pragma once

namespace sluice {

const char* Version();  // "0.1.0"

}  // namespace sluice
