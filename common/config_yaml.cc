// The configuration file: nested YAML keys become dotted ones. yaml-cpp stays in this file.
#include <yaml-cpp/yaml.h>

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/config.h"
#include "common/read_file.h"
#include "common/status_macros.h"

namespace sluice {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;

// One key of the file, flattened; `value` is what a flag would say.
struct FlatValue {
  std::string key;
  YAML::Node node;
  std::string place;  // "sluice.yaml:3"
};

std::string Place(const std::string& path, const YAML::Node& node) {
  return absl::StrCat(path, ":", node.Mark().line + 1);
}

}  // namespace

absl::Status ConfigSchema::LoadYamlFile(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kMaxFileBytes);
  if (!text.ok()) return Annotate(text.status(), "configuration file");

  std::vector<FlatValue> values;
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(*text);
    if (documents.empty() || documents[0].IsNull()) return absl::OkStatus();
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": holds more than one YAML document"));
    }

    // Depth is bounded by the known keys: only groups that have keys are entered.
    std::vector<FlatValue> groups = {{"", documents[0], Place(path, documents[0])}};
    while (!groups.empty()) {
      const FlatValue group = std::move(groups.back());
      groups.pop_back();
      if (!group.node.IsMap()) {
        return absl::InvalidArgumentError(
            absl::StrCat(group.place, ": '", group.key, "' must be a mapping of keys to values"));
      }
      for (const auto& item : group.node) {
        const std::string place = Place(path, item.first);
        if (!item.first.IsScalar()) {
          return absl::InvalidArgumentError(absl::StrCat(place, ": a key must be a plain name"));
        }
        FlatValue value{absl::StrCat(group.key, group.key.empty() ? "" : ".", item.first.Scalar()),
                        item.second, place};
        if (Find(value.key) != nullptr) {
          values.push_back(std::move(value));
        } else if (HasKeysBelow(value.key)) {
          groups.push_back(std::move(value));
        } else {
          return Unknown(value.key, place, [](const std::string& key) { return key; });
        }
      }
    }

    std::set<std::string> seen;
    for (const FlatValue& value : values) {
      const std::string at = absl::StrCat(value.place, ": key '", value.key, "'");
      if (!seen.insert(value.key).second) {
        return absl::InvalidArgumentError(absl::StrCat(at, " is given twice"));
      }
      Entry* entry = Find(value.key);
      std::string setting;
      if (entry->kind == Kind::kList && value.node.IsSequence()) {
        for (const YAML::Node& item : value.node) {
          if (!item.IsScalar() || absl::StrContains(item.Scalar(), ',')) {
            return absl::InvalidArgumentError(
                absl::StrCat(at, ": list items must be plain values without a comma"));
          }
          absl::StrAppend(&setting, setting.empty() ? "" : ",", item.Scalar());
        }
      } else if (value.node.IsScalar()) {
        setting = value.node.Scalar();
      } else {
        return absl::InvalidArgumentError(
            absl::StrCat(at, value.node.IsNull() ? " has no value" : " must be a single value",
                         " (", entry->type_hint, ")"));
      }
      SLUICE_RETURN_IF_ERROR(Set(entry, setting, value.place));
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", error.mark.line + 1, ": not valid YAML: ", error.msg));
  }
  return absl::OkStatus();
}

}  // namespace sluice
