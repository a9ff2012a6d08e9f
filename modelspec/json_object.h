// Reading the JSON files of a model folder, which may come from anybody. Pure, any thread.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

// Parses an object; a key given twice anywhere in it is refused by name, and so is nesting deep
// enough to exhaust the stack of whoever copies or prints it.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text);

}  // namespace sluice
