// Tells whoever started a program which ports it took: {"pid": 1, "http_port": 8000, ...}. Written
// to a temporary name and renamed, so a reader sees all of it or nothing. Main thread, once, when
// listening.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace sluice {

// `ports`: names such as "http_port" and their numbers. UNAVAILABLE names the path.
absl::Status WritePortFile(const std::string& path,
                           const std::vector<std::pair<std::string, int>>& ports);

}  // namespace sluice
