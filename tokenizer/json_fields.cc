#include "tokenizer/json_fields.h"

#include "common/status_macros.h"

namespace sluice {

absl::string_view JsonField::TypeName() const {
  if (!value_.has_value()) return "missing";
  switch (value_->type()) {
    case simdjson::dom::element_type::ARRAY:
      return "an array";
    case simdjson::dom::element_type::OBJECT:
      return "an object";
    case simdjson::dom::element_type::STRING:
      return "a string";
    case simdjson::dom::element_type::BOOL:
      return "a boolean";
    case simdjson::dom::element_type::NULL_VALUE:
      return "null";
    default:
      return "a number";
  }
}

absl::StatusOr<JsonDocument> JsonDocument::Parse(std::string name, absl::string_view json) {
  JsonDocument document;
  document.name_ = std::move(name);
  const simdjson::error_code error =
      document.parser_->parse(json.data(), json.size()).get(document.root_);
  if (error != simdjson::SUCCESS) {
    return absl::InvalidArgumentError(
        absl::StrCat(document.name_, ": not valid JSON: ", simdjson::error_message(error)));
  }
  return document;
}

absl::StatusOr<absl::string_view> JsonField::String() const {
  std::string_view text;
  if (!Get(&text)) {
    return Invalid(absl::StrCat("must be a string, not ", TypeName()));
  }
  return absl::string_view(text.data(), text.size());
}

absl::StatusOr<bool> JsonField::Bool() const {
  bool flag = false;
  if (!Get(&flag)) {
    return Invalid(absl::StrCat("must be true or false, not ", TypeName()));
  }
  return flag;
}

absl::StatusOr<int64_t> JsonField::Int(int64_t low, int64_t high) const {
  int64_t number = 0;
  if (!Get(&number) || number < low || number > high) {
    return Invalid(absl::StrCat("must be an integer in [", low, ", ", high, "]"));
  }
  return number;
}

absl::StatusOr<std::vector<JsonField>> JsonField::Array() const {
  simdjson::dom::array array;
  if (!Get(&array)) {
    return Invalid(absl::StrCat("must be an array, not ", TypeName()));
  }
  std::vector<JsonField> fields;
  for (const simdjson::dom::element item : array) {
    fields.emplace_back(absl::StrCat(path_, "[", fields.size(), "]"), item);
  }
  return fields;
}

absl::StatusOr<simdjson::dom::object> JsonField::Object() const {
  simdjson::dom::object object;
  if (!Get(&object)) {
    return Invalid(absl::StrCat("must be an object, not ", TypeName()));
  }
  return object;
}

absl::StatusOr<JsonField> JsonField::Member(absl::string_view key) const {
  SLUICE_ASSIGN_OR_RETURN(const simdjson::dom::object object, Object());
  const absl::string_view separator = path_.empty() || path_.back() == ' ' ? "" : ".";
  JsonField member(absl::StrCat(path_, separator, key));
  bool found = false;
  for (const simdjson::dom::key_value_pair pair : object) {
    if (absl::string_view(pair.key.data(), pair.key.size()) != key) continue;
    if (found) return member.Invalid("appears twice");
    found = true;
    member.value_ = pair.value;
  }
  return member;
}

}  // namespace sluice
