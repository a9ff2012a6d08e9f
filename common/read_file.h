// A file as a whole. Any thread; waits for the disk.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace sluice {

// NOT_FOUND if there is none, INVALID_ARGUMENT if it is a folder or larger than `max_bytes`,
// UNAVAILABLE with the system's reason if it cannot be read. Messages begin with the path.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);

}  // namespace sluice
