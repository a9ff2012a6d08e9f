#include "modelspec/json_fields.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice {

JsonFields::JsonFields(const nlohmann::json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {}

const nlohmann::json* JsonFields::Get(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void JsonFields::Keep(const absl::Status& status) {
  if (status_.ok()) status_ = status;
}

void JsonFields::Refuse(const char* name, absl::string_view why) {
  Keep(absl::InvalidArgumentError(absl::StrCat("field '", prefix_, name, "' ", why)));
}

void JsonFields::RefuseUnimplemented(const char* name, absl::string_view why) {
  Keep(absl::UnimplementedError(absl::StrCat("field '", prefix_, name, "' ", why)));
}

void JsonFields::Int(const char* name, int64_t* field, int64_t low, int64_t high,
                     std::optional<int64_t> fallback) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) {
    if (!fallback.has_value()) return Refuse(name, "is missing");
    *field = *fallback;
    return;
  }
  // An unsigned value may be larger than any int64_t.
  const bool fits =
      value->is_number_unsigned()
          ? value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
          : value->is_number_integer();
  if (!value->is_number_integer()) return Refuse(name, "must be an integer");
  if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > high) {
    return Refuse(name, absl::StrCat("is ", value->dump(), ", outside ", low, " to ", high));
  }
  *field = value->get<int64_t>();
}

void JsonFields::Double(const char* name, double* field, double low, double high,
                        std::optional<double> fallback) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) {
    if (!fallback.has_value()) return Refuse(name, "is missing");
    *field = *fallback;
    return;
  }
  if (!value->is_number()) return Refuse(name, "must be a number");
  const auto number = value->get<double>();
  if (!(number >= low && number <= high)) {
    return Refuse(name, absl::StrCat("is ", value->dump(), ", outside ", low, " to ", high));
  }
  *field = number;
}

void JsonFields::Bool(const char* name, bool* field, std::optional<bool> fallback) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) {
    if (!fallback.has_value()) return Refuse(name, "is missing");
    *field = *fallback;
    return;
  }
  if (!value->is_boolean()) return Refuse(name, "must be true or false");
  *field = value->get<bool>();
}

void JsonFields::String(const char* name, std::string* field, std::optional<std::string> fallback) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) {
    if (!fallback.has_value()) return Refuse(name, "is missing");
    *field = *std::move(fallback);
    return;
  }
  if (!value->is_string()) return Refuse(name, "must be a string");
  *field = value->get<std::string>();
}

void JsonFields::IntOrList(const char* name, std::vector<int64_t>* out, int64_t low, int64_t high) {
  const nlohmann::json* value = Get(name);
  if (value == nullptr) return;
  const std::vector<nlohmann::json> items = value->is_array()
                                                ? value->get<std::vector<nlohmann::json>>()
                                                : std::vector<nlohmann::json>{*value};
  for (const nlohmann::json& item : items) {
    const nlohmann::json holder = {{name, item}};
    JsonFields one(holder, prefix_);
    int64_t number = 0;
    one.Int(name, &number, low, high);
    Keep(one.status());
    if (!status_.ok()) return;
    if (std::find(out->begin(), out->end(), number) == out->end()) out->push_back(number);
  }
}

}  // namespace sluice
