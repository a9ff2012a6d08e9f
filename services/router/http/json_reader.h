// Typed access to one parsed JSON document: what a field may be, said by its name when it is not.
// Heavy (simdjson): for .cc files that parse bodies.
#pragma once

#include <simdjson.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice::router {

using JsonElement = simdjson::dom::element;

// Nesting deeper than this is refused; the deepest field we read is at 7.
inline constexpr size_t kMaxJsonDepth = 32;

// The document's elements live as long as this.
class JsonDocument {
 public:
  // Refuses invalid UTF-8, numbers that no type holds, deep nesting, and an object with the same
  // key twice: readers that disagree on which one counts are how filters are bypassed.
  static absl::StatusOr<std::unique_ptr<JsonDocument>> ParseObject(absl::string_view body);

  simdjson::dom::object root() const { return root_; }

 private:
  JsonDocument() = default;

  simdjson::dom::parser parser_;
  simdjson::dom::object root_;
};

absl::Status WrongType(absl::string_view param, absl::string_view expected);

// Reads fields of one object. `prefix` names the object in errors ("messages[2].").
class JsonObjectReader {
 public:
  JsonObjectReader(simdjson::dom::object object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  // nullopt when the key is absent or null.
  std::optional<JsonElement> Find(absl::string_view key) const;
  std::string Param(absl::string_view key) const;

  // Leave *field alone when absent or null; fail when of another type.
  absl::Status Read(absl::string_view key, bool* field) const;
  absl::Status Read(absl::string_view key, std::optional<bool>* field) const;
  absl::Status Read(absl::string_view key, std::string* field) const;
  absl::Status Read(absl::string_view key, std::optional<double>* field) const;
  absl::Status Read(absl::string_view key, std::optional<int64_t>* field) const;
  absl::Status Read(absl::string_view key, std::vector<int64_t>* field) const;

 private:
  const simdjson::dom::object object_;
  const std::string prefix_;
};

// 16 and 16.0 are integers; true and "16" are not.
std::optional<int64_t> AsInteger(const JsonElement& element);
std::optional<absl::string_view> AsString(const JsonElement& element);
absl::StatusOr<std::vector<int64_t>> AsIntegers(const JsonElement& element,
                                                absl::string_view param);
// null, false, "", [] and {}: a client's way of not asking for a feature.
bool AsksForNothing(const JsonElement& element);

}  // namespace sluice::router
