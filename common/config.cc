// Where values come from: arguments, environment, and the order in which they are merged. The file
// is read in config_yaml.cc, values are read in config_values.cc, help and --print-config are
// written in config_text.cc.
#include "common/config.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "common/version.h"

namespace sluice {
namespace {

constexpr absl::string_view kEnvPrefix = "SLUICE_";
constexpr absl::string_view kConfigVariable = "SLUICE_CONFIG";

std::string FlagName(const std::string& key) {
  return absl::StrCat("--", absl::StrReplaceAll(key, {{"_", "-"}}));
}

std::string EnvName(const std::string& key) {
  return absl::StrCat(kEnvPrefix, absl::AsciiStrToUpper(absl::StrReplaceAll(key, {{".", "_"}})));
}

// Kubernetes gives each pod variables about the services of its namespace, named after them; a
// service "sluice-router" makes SLUICE_ROUTER_SERVICE_HOST and
// SLUICE_ROUTER_PORT=tcp://10.0.0.1:80. They are not ours to read or to refuse.
bool IsKubernetesServiceVariable(absl::string_view name, absl::string_view value) {
  return absl::EndsWith(name, "_SERVICE_HOST") || absl::StrContains(name, "_SERVICE_PORT") ||
         absl::StrContains(name, "_TCP_") || absl::StrContains(name, "_UDP_") ||
         absl::StartsWith(value, "tcp://") || absl::StartsWith(value, "udp://");
}

// Levenshtein distance.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

[[noreturn]] void AbortOnBadSchema(const std::string& message) {
  std::fprintf(stderr, "ConfigSchema: %s\n", message.c_str());
  std::abort();
}

}  // namespace

ConfigSchema::ConfigSchema(std::string program, std::string description, std::string examples)
    : program_(std::move(program)),
      description_(std::move(description)),
      examples_(std::move(examples)) {}

void ConfigSchema::AddEntry(Entry entry) {
  static constexpr absl::string_view kReserved[] = {"config", "print_config", "help", "version"};
  if (absl::c_linear_search(kReserved, entry.key)) {
    AbortOnBadSchema(absl::StrCat("key '", entry.key, "' is reserved"));
  }
  for (const Entry& other : entries_) {
    if (EnvName(other.key) == EnvName(entry.key)) {
      AbortOnBadSchema(absl::StrCat("keys '", other.key, "' and '", entry.key,
                                    "' have the same environment variable"));
    }
  }
  entry.default_text = entry.print();
  entries_.push_back(std::move(entry));
}

void ConfigSchema::AddPositional(std::string name, std::string* field, std::string why) {
  positional_name_ = std::move(name);
  positional_field_ = field;
  positional_why_ = std::move(why);
}

ConfigSchema::Entry* ConfigSchema::Find(absl::string_view key) {
  const auto it = absl::c_find_if(entries_, [key](const Entry& entry) { return entry.key == key; });
  return it == entries_.end() ? nullptr : &*it;
}

bool ConfigSchema::HasKeysBelow(absl::string_view group) const {
  const std::string prefix = absl::StrCat(group, ".");
  return absl::c_any_of(entries_,
                        [&](const Entry& entry) { return absl::StartsWith(entry.key, prefix); });
}

absl::Status ConfigSchema::Set(Entry* entry, absl::string_view value, const std::string& source) {
  SLUICE_RETURN_IF_ERROR(
      Annotate(entry->parse(value), absl::StrCat(source, ": key '", entry->key, "'")));
  entry->source = source;
  return absl::OkStatus();
}

absl::Status ConfigSchema::Unknown(
    absl::string_view name, const std::string& source,
    const std::function<std::string(const std::string&)>& spelling) const {
  std::string nearest;
  size_t nearest_distance = 0;
  for (const Entry& entry : entries_) {
    const std::string candidate = spelling(entry.key);
    const size_t distance = EditDistance(name, candidate);
    if (nearest.empty() || distance < nearest_distance) {
      nearest = candidate;
      nearest_distance = distance;
    }
  }
  std::string message = absl::StrCat(source, ": unknown key '", name, "'");
  if (!nearest.empty()) absl::StrAppend(&message, "; the nearest known key is '", nearest, "'");
  absl::StrAppend(&message, " (", program_, " --help lists all)");
  return absl::InvalidArgumentError(message);
}

absl::StatusOr<ConfigSchema::Arguments> ConfigSchema::ParseArguments(
    const std::vector<std::string>& args) {
  Arguments parsed;
  bool only_positional = false;
  bool has_positional = false;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (only_positional || !absl::StartsWith(arg, "-") || arg == "-") {
      if (positional_field_ == nullptr || has_positional) {
        return absl::InvalidArgumentError(
            absl::StrCat("argument '", arg, "' is not expected (", program_, " --help)"));
      }
      has_positional = true;
      if (Entry* entry = Find(positional_name_); entry != nullptr) {
        parsed.settings.push_back({entry, arg, "argument"});
      } else {
        *positional_field_ = arg;
      }
      continue;
    }
    if (arg == "--") {
      only_positional = true;
      continue;
    }
    if (arg == "-h" || arg == "--help") {
      parsed.help = true;
      continue;
    }
    if (arg == "--version") {
      parsed.version = true;
      continue;
    }
    if (arg == "--print-config" || arg == "--print_config") {
      parsed.print_config = true;
      continue;
    }

    const size_t equals = arg.find('=');
    const std::string name = arg.substr(0, equals);
    const std::string source = absl::StrCat("flag ", name);
    const bool is_config = name == "--config";
    const std::string key = absl::StrReplaceAll(absl::StripPrefix(name, "--"), {{"-", "_"}});
    Entry* entry = is_config ? nullptr : Find(key);
    if (entry == nullptr && equals == std::string::npos && absl::StartsWith(key, "no_")) {
      Entry* denied = Find(absl::StripPrefix(key, "no_"));
      if (denied != nullptr && denied->kind == Kind::kBool) {
        parsed.settings.push_back({denied, "false", source});
        continue;
      }
    }
    if (!absl::StartsWith(name, "--") || (entry == nullptr && !is_config)) {
      // --help wins over a mistake beside it.
      if (absl::c_any_of(args, [](const std::string& a) { return a == "-h" || a == "--help"; })) {
        return Arguments{.help = true};
      }
      return Unknown(name, "command line", FlagName);
    }

    std::string value;
    if (equals != std::string::npos) {
      value = arg.substr(equals + 1);
    } else if (entry != nullptr && entry->kind == Kind::kBool) {
      value = "true";
    } else if (i + 1 < args.size() && !absl::StartsWith(args[i + 1], "--")) {
      value = args[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat(source, " needs a value"));
    }
    if (is_config) {
      parsed.config_path = value;
    } else {
      parsed.settings.push_back({entry, value, source});
    }
  }
  return parsed;
}

absl::Status ConfigSchema::LoadEnvironment(const std::map<std::string, std::string>& environment) {
  for (const auto& [name, value] : environment) {
    if (!absl::StartsWith(name, kEnvPrefix) || name == kConfigVariable) continue;
    if (IsKubernetesServiceVariable(name, value)) continue;
    const auto it = absl::c_find_if(
        entries_, [&name = name](const Entry& entry) { return EnvName(entry.key) == name; });
    if (it == entries_.end()) return Unknown(name, "environment", EnvName);
    SLUICE_RETURN_IF_ERROR(Set(&*it, value, absl::StrCat("environment ", name)));
  }
  return absl::OkStatus();
}

absl::StatusOr<ConfigAction> ConfigSchema::LoadFrom(
    const std::vector<std::string>& args, const std::map<std::string, std::string>& environment) {
  SLUICE_ASSIGN_OR_RETURN(Arguments arguments, ParseArguments(args));
  if (arguments.help) return ConfigAction{true, Help()};
  if (arguments.version) {
    return ConfigAction{true, absl::StrCat(program_, " ", Version(), "\n")};
  }

  if (arguments.config_path.empty()) {
    const auto it = environment.find(std::string(kConfigVariable));
    if (it != environment.end()) arguments.config_path = it->second;
  }
  if (!arguments.config_path.empty()) {
    SLUICE_RETURN_IF_ERROR(LoadYamlFile(arguments.config_path));
  }
  SLUICE_RETURN_IF_ERROR(LoadEnvironment(environment));
  for (const Arguments::Setting& setting : arguments.settings) {
    SLUICE_RETURN_IF_ERROR(Set(setting.entry, setting.value, setting.source));
  }
  if (arguments.print_config) return ConfigAction{true, Print()};
  return ConfigAction{};
}

absl::StatusOr<ConfigAction> ConfigSchema::Load(int argc, const char* const* argv) {
  std::map<std::string, std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const absl::string_view text = *entry;
    const size_t equals = text.find('=');
    if (equals == absl::string_view::npos || !absl::StartsWith(text, kEnvPrefix)) continue;
    environment.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return LoadFrom(std::vector<std::string>(argv + std::min(argc, 1), argv + argc), environment);
}

}  // namespace sluice
