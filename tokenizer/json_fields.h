// Checked access to JSON objects of untrusted files: every error carries the field's path. For the
// tokenizer's own .cc files (it includes simdjson).
#pragma once

#include <simdjson.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace sluice {

// A parsed document. Strings and values borrow from `parser`.
class JsonDocument {
 public:
  // `name` is the file's name, for errors. Nesting deeper than simdjson's limit (1024) is an error.
  static absl::StatusOr<JsonDocument> Parse(std::string name, absl::string_view json);

  simdjson::dom::element root() const { return root_; }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  // On the heap: elements point into it.
  std::unique_ptr<simdjson::dom::parser> parser_ = std::make_unique<simdjson::dom::parser>();
  simdjson::dom::element root_;
};

// One value and where it stands.
class JsonField {
 public:
  JsonField(std::string path, simdjson::dom::element value)
      : path_(std::move(path)), value_(value) {}

  const std::string& path() const { return path_; }
  // Absent counts as null.
  bool is_null() const { return !value_.has_value() || value_->is_null(); }
  bool is_string() const { return value_.has_value() && value_->is_string(); }
  bool is_array() const { return value_.has_value() && value_->is_array(); }

  absl::StatusOr<absl::string_view> String() const;
  absl::StatusOr<bool> Bool() const;
  // INVALID_ARGUMENT outside [low, high] or if not an integer.
  absl::StatusOr<int64_t> Int(int64_t low, int64_t high) const;
  absl::StatusOr<std::vector<JsonField>> Array() const;

  // The member `key`, perhaps absent. Not an object, or `key` there twice: an error.
  absl::StatusOr<JsonField> Member(absl::string_view key) const;
  absl::StatusOr<simdjson::dom::object> Object() const;

  absl::Status Invalid(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", what));
  }
  absl::Status Unsupported(absl::string_view what) const {
    return absl::UnimplementedError(absl::StrCat(path_, ": ", what));
  }

 private:
  explicit JsonField(std::string path) : path_(std::move(path)) {}
  absl::string_view TypeName() const;
  // False if the value is absent or of another type.
  template <typename T>
  bool Get(T* out) const {
    return value_.has_value() && value_->get(*out) == simdjson::SUCCESS;
  }

  std::string path_;
  std::optional<simdjson::dom::element> value_;
};

}  // namespace sluice
