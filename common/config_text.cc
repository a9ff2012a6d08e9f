// What a person reads: --help and --print-config.
#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/config.h"

namespace sluice {
namespace {

constexpr size_t kColumns = 100;

// `text` in lines of at most kColumns, each after `indent` spaces.
std::string Wrapped(absl::string_view text, size_t indent) {
  std::string out;
  for (absl::string_view paragraph : absl::StrSplit(text, '\n')) {
    std::string line(indent, ' ');
    bool empty = true;
    for (absl::string_view word : absl::StrSplit(paragraph, ' ', absl::SkipEmpty())) {
      if (!empty && line.size() + 1 + word.size() > kColumns) {
        absl::StrAppend(&out, line, "\n");
        line.assign(indent, ' ');
        empty = true;
      }
      absl::StrAppend(&line, empty ? "" : " ", word);
      empty = false;
    }
    absl::StrAppend(&out, empty ? "" : line, "\n");
  }
  return out;
}

// The part of a key before its first dot; "" for a key of no group.
std::string GroupOf(const std::string& key) {
  const size_t dot = key.find('.');
  return dot == std::string::npos ? "" : key.substr(0, dot);
}

// Keys by group, groups in the order of their first key and the keys of no group first.
std::vector<std::string> Groups(const std::vector<std::string>& keys) {
  std::vector<std::string> groups = {""};
  for (const std::string& key : keys) {
    const std::string group = GroupOf(key);
    if (std::find(groups.begin(), groups.end(), group) == groups.end()) groups.push_back(group);
  }
  return groups;
}

}  // namespace

std::string ConfigSchema::Help() const {
  std::string out = absl::StrCat(program_, ": ", description_, "\n\nUsage: ", program_, " [flags]");
  if (positional_field_ != nullptr) {
    absl::StrAppend(&out, " [", absl::AsciiStrToUpper(positional_name_), "]\n\n  ",
                    absl::AsciiStrToUpper(positional_name_), "\n", Wrapped(positional_why_, 6));
  } else {
    absl::StrAppend(&out, "\n");
  }
  absl::StrAppend(&out, "\n",
                  Wrapped("Each flag is also a key of the configuration file (--http-port is "
                          "`http_port:`) and a variable of the environment (SLUICE_HTTP_PORT). "
                          "Flags win over the environment, the environment over the file.",
                          0));

  std::vector<std::string> keys;
  for (const Entry& entry : entries_) keys.push_back(entry.key);
  for (const std::string& group : Groups(keys)) {
    absl::StrAppend(&out, "\n", group.empty() ? "Flags" : group, ":\n");
    for (const Entry& entry : entries_) {
      if (GroupOf(entry.key) != group) continue;
      absl::StrAppend(&out, "  --", absl::StrReplaceAll(entry.key, {{"_", "-"}}), "  <",
                      entry.type_hint, ">\n",
                      Wrapped(absl::StrCat(entry.why, " (default ", entry.default_text, ")"), 6));
    }
    if (!group.empty()) continue;
    absl::StrAppend(&out,
                    "  --config  <file>\n      YAML file to read first (or SLUICE_CONFIG)\n"
                    "  --print-config\n      Print every key, its value and its source, and exit\n"
                    "  --help, --version\n      Print this text or the version, and exit\n");
  }
  if (!examples_.empty()) {
    absl::StrAppend(&out, "\nExamples:\n");
    for (absl::string_view line : absl::StrSplit(absl::StripAsciiWhitespace(examples_), '\n')) {
      absl::StrAppend(&out, "  ", line, "\n");
    }
  }
  return out;
}

std::string ConfigSchema::Print() const {
  std::string out = absl::StrCat("# ", program_, ": every key, its value and where it came from\n");
  std::vector<std::string> keys;
  for (const Entry& entry : entries_) keys.push_back(entry.key);
  for (const std::string& group : Groups(keys)) {
    if (!group.empty()) absl::StrAppend(&out, group, ":\n");
    const std::string indent = group.empty() ? "" : "  ";
    for (const Entry& entry : entries_) {
      if (GroupOf(entry.key) != group) continue;
      // A key of two dots keeps the second: `router: {tls.cert: ...}` reads back the same.
      const std::string name = group.empty() ? entry.key : entry.key.substr(group.size() + 1);
      for (absl::string_view line :
           absl::StrSplit(Wrapped(entry.why, 0), '\n', absl::SkipEmpty())) {
        absl::StrAppend(&out, indent, "# ", line, "\n");
      }
      absl::StrAppend(&out, indent, name, ": ", entry.print(), "  # ", entry.type_hint, "; ",
                      entry.source, "\n");
    }
  }
  return out;
}

}  // namespace sluice
