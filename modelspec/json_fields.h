// The fields of one JSON object of a checkpoint's configuration, read with their types and ranges.
// The first refusal sticks and names the field; later reads then do nothing. For one thread, while
// loading. Internal to modelspec.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

class JsonFields {
 public:
  // `object` must be a JSON object and outlive this. `prefix` ("rope_scaling.") precedes its
  // fields' names in messages.
  explicit JsonFields(const nlohmann::json& object, std::string prefix = "");

  // The field, or null when it is absent or null.
  const nlohmann::json* Get(const char* name) const;
  bool Has(const char* name) const { return Get(name) != nullptr; }

  // Without a fallback the field is required. Numbers outside [low, high] are refused.
  void Int(const char* name, int64_t* field, int64_t low, int64_t high,
           std::optional<int64_t> fallback = std::nullopt);
  void Double(const char* name, double* field, double low, double high,
              std::optional<double> fallback = std::nullopt);
  void Bool(const char* name, bool* field, std::optional<bool> fallback = std::nullopt);
  void String(const char* name, std::string* field,
              std::optional<std::string> fallback = std::nullopt);
  // An integer or a list of integers; absent means none. Adds those that `out` has not yet.
  void IntOrList(const char* name, std::vector<int64_t>* out, int64_t low, int64_t high);

  // Records a refusal of field `name`, if none is recorded yet.
  void Refuse(const char* name, absl::string_view why);
  void RefuseUnimplemented(const char* name, absl::string_view why);
  // The same for a refusal that was met elsewhere.
  void Keep(const absl::Status& status);

  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json& object_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace sluice
