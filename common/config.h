// One typed configuration per program: a struct with defaults, filled from a YAML file, the
// environment and the command line, in this order. Unknown keys and bad values are refused by name,
// with the nearest known key. Used on the main thread at start.
//
//   struct RouterConfig { int http_port = 8000; absl::Duration drain_timeout = absl::Seconds(30);
//   }; ConfigSchema schema("sluice-router", "Public front of a Sluice cluster.");
//   schema.Add("http_port", &config.http_port, "Port of the OpenAI-compatible HTTP server.");
//   absl::StatusOr<ConfigAction> action = schema.Load(argc, argv);
//
// Key `http_port` is read as `http_port: 8001` (YAML), SLUICE_HTTP_PORT=8001 (environment) and
// --http-port 8001 (flag). Nested keys are spelled with dots: `scheduler.max_num_seqs`,
// SLUICE_SCHEDULER_MAX_NUM_SEQS, --scheduler.max-num-seqs.
// A boolean flag may stand alone (--json-logs) or be denied (--no-json-logs).
// Every program also has --config FILE (or SLUICE_CONFIG), --print-config, --help and --version.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace sluice {

// What main should do after Load: go on, or print `text` and exit 0 (--help, --print-config).
struct ConfigAction {
  bool exit = false;
  std::string text;
};

// A number of bytes, written 512, 64KiB, 8MiB or 2GiB in configuration.
struct ByteSize {
  uint64_t bytes = 0;
  friend bool operator==(const ByteSize&, const ByteSize&) = default;
};
absl::StatusOr<ByteSize> ParseByteSize(absl::string_view text);
std::string FormatByteSize(ByteSize size);

class ConfigSchema {
 public:
  ConfigSchema(std::string program, std::string description, std::string examples = "");

  // Registers one key. `field` must outlive the schema and holds the default. `why` says what the
  // key does and when to change it. Units are part of the type or the key's name.
  void Add(std::string key, bool* field, std::string why);
  void Add(std::string key, std::string* field, std::string why);
  void Add(std::string key, absl::Duration* field, std::string why);  // 250ms, 2s, 1m
  void Add(std::string key, ByteSize* field, std::string why);
  void Add(std::string key, std::vector<std::string>* field, std::string why);  // a,b,c
  // Numbers outside [low, high] are refused.
  void Add(std::string key, int64_t* field, std::string why, int64_t low, int64_t high);
  void Add(std::string key, int* field, std::string why, int low, int high);
  void Add(std::string key, double* field, std::string why, double low, double high);
  // One of `choices`, by name.
  void AddChoice(std::string key, std::string* field, std::vector<std::string> choices,
                 std::string why);
  // `name` is filled from the first bare argument (for example a model folder). It may also be the
  // name of a key, so that the argument is another spelling of that key's flag.
  void AddPositional(std::string name, std::string* field, std::string why);

  // Merges file, environment and flags into the fields. INVALID_ARGUMENT names key and source.
  absl::StatusOr<ConfigAction> Load(int argc, const char* const* argv);
  // The same from parts, for tests: arguments without the program's name, and the environment.
  absl::StatusOr<ConfigAction> LoadFrom(const std::vector<std::string>& args,
                                        const std::map<std::string, std::string>& environment);

  // Every key with value and where it came from, as YAML with comments.
  std::string Print() const;
  std::string Help() const;

 private:
  enum class Kind { kScalar, kBool, kList };

  struct Entry {
    std::string key;
    std::string why;
    std::string type_hint;  // "int 1..65535", "duration", "one of a|b"
    Kind kind = Kind::kScalar;
    std::function<absl::Status(absl::string_view)> parse;
    std::function<std::string()> print;  // as YAML
    std::string default_text;            // print() before anything was loaded
    std::string source = "default";
  };

  // One path of a command line: what the arguments say before anything is set.
  struct Arguments {
    struct Setting {
      Entry* entry;
      std::string value;
      std::string source;
    };
    std::vector<Setting> settings;
    std::string config_path;
    bool print_config = false;
    bool help = false;
    bool version = false;
  };

  void AddEntry(Entry entry);
  Entry* Find(absl::string_view key);
  bool HasKeysBelow(absl::string_view group) const;
  absl::Status Set(Entry* entry, absl::string_view value, const std::string& source);
  absl::Status Unknown(absl::string_view name, const std::string& source,
                       const std::function<std::string(const std::string&)>& spelling) const;

  absl::StatusOr<Arguments> ParseArguments(const std::vector<std::string>& args);
  absl::Status LoadYamlFile(const std::string& path);
  absl::Status LoadEnvironment(const std::map<std::string, std::string>& environment);

  const std::string program_;
  const std::string description_;
  const std::string examples_;
  std::vector<Entry> entries_;
  std::string positional_name_;
  std::string positional_why_;
  std::string* positional_field_ = nullptr;
};

}  // namespace sluice
