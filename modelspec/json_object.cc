#include "modelspec/json_object.h"

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace sluice {
namespace {

// The library parses without recursion, but copies and prints with it, on a stack that ends.
constexpr int kMaxDepth = 64;

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text) {
  using Json = nlohmann::json;
  // The library keeps the last of two equal keys; a reader of the file may have meant the first.
  std::vector<std::set<std::string>> open_objects;
  std::string duplicate;
  bool is_too_deep = false;
  const Json::parser_callback_t watch = [&](int depth, Json::parse_event_t event, Json& value) {
    const bool is_container =
        event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    is_too_deep = is_too_deep || (is_container && depth > kMaxDepth);
    // What is not kept has no end in `open_objects`, but its keys are told: nothing counts any
    // more.
    if (is_too_deep) return false;
    if (event == Json::parse_event_t::object_start) {
      open_objects.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      open_objects.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second && duplicate.empty()) duplicate = key;
    }
    return true;
  };

  Json object;
  try {
    object = Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not valid JSON: ", error.what()));
  }
  if (is_too_deep) {
    return absl::InvalidArgumentError(absl::StrCat("JSON of more than ", kMaxDepth, " levels"));
  }
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  if (!duplicate.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("field '", duplicate, "' is given twice"));
  }
  return object;
}

}  // namespace sluice
