#include "services/router/http/json_reader.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "services/router/api/error_table.h"

namespace sluice::router {
namespace {

// Recursion is bounded by kMaxJsonDepth.
absl::Status CheckNoDuplicateKeys(const JsonElement& element) {
  simdjson::dom::array array;
  if (element.get(array) == simdjson::SUCCESS) {
    for (const JsonElement child : array) {
      if (child.is_array() || child.is_object()) {
        SLUICE_RETURN_IF_ERROR(CheckNoDuplicateKeys(child));
      }
    }
    return absl::OkStatus();
  }
  simdjson::dom::object object;
  if (element.get(object) != simdjson::SUCCESS) return absl::OkStatus();
  absl::flat_hash_set<absl::string_view> keys;
  for (const auto field : object) {
    if (!keys.insert(absl::string_view(field.key.data(), field.key.size())).second) {
      return InvalidParameter(std::string(field.key),
                              absl::StrCat("duplicate key '", std::string(field.key), "'"));
    }
    if (field.value.is_array() || field.value.is_object()) {
      SLUICE_RETURN_IF_ERROR(CheckNoDuplicateKeys(field.value));
    }
  }
  return absl::OkStatus();
}

// One half of an escaped UTF-16 pair (\ud83d without \ude00) stands for no character. Languages
// whose strings are UTF-16 send it when they cut a text in the middle of one.
bool HasUnpairedSurrogate(absl::string_view json) {
  const auto escaped_unit = [json](size_t at) -> uint32_t {  // 0: no \uXXXX is there
    uint32_t unit = 0;
    if (json.substr(at, 2) != "\\u" || !absl::SimpleHexAtoi(json.substr(at + 2, 4), &unit))
      return 0;
    return unit;
  };
  for (size_t i = 0; i + 1 < json.size(); ++i) {
    if (json[i] != '\\') continue;
    const uint32_t unit = escaped_unit(i);
    ++i;  // what is escaped; for \uXXXX the digits follow as if they were text
    if (unit >= 0xDC00 && unit <= 0xDFFF) return true;
    if (unit < 0xD800 || unit > 0xDFFF) continue;
    const uint32_t second = i + 5 < json.size() ? escaped_unit(i + 5) : 0;
    if (second < 0xDC00 || second > 0xDFFF) return true;
    i += 6;
  }
  return false;
}

std::string WhyUnparsed(simdjson::error_code code, absl::string_view body) {
  if (code == simdjson::STRING_ERROR && HasUnpairedSurrogate(body)) {
    return "a string holds an unpaired surrogate (\\uD800 to \\uDFFF)";
  }
  return simdjson::error_message(code);
}

}  // namespace

absl::StatusOr<std::unique_ptr<JsonDocument>> JsonDocument::ParseObject(absl::string_view body) {
  std::unique_ptr<JsonDocument> document(new JsonDocument());
  if (body.empty()) {
    return MakeError(ErrorKind::kInvalidRequest, "the body is empty; a JSON object is needed");
  }
  if (document->parser_.allocate(body.size(), kMaxJsonDepth) != simdjson::SUCCESS) {
    return MakeError(ErrorKind::kInternal, "no memory to parse the body");
  }
  JsonElement root;
  const simdjson::error_code code = document->parser_.parse(body.data(), body.size()).get(root);
  if (code != simdjson::SUCCESS) {
    return MakeError(ErrorKind::kInvalidRequest,
                     absl::StrCat("the body is not valid JSON: ", WhyUnparsed(code, body)));
  }
  if (root.get(document->root_) != simdjson::SUCCESS) {
    return MakeError(ErrorKind::kInvalidRequest, "the body must be a JSON object");
  }
  SLUICE_RETURN_IF_ERROR(CheckNoDuplicateKeys(root));
  return document;
}

absl::Status WrongType(absl::string_view param, absl::string_view expected) {
  return InvalidParameter(param, absl::StrCat(param, " must be ", expected));
}

std::optional<int64_t> AsInteger(const JsonElement& element) {
  int64_t integer;
  if (element.get(integer) == simdjson::SUCCESS) return integer;
  double number;
  if (!element.is_double() || element.get(number) != simdjson::SUCCESS) return std::nullopt;
  // Below 2^53 every integral double is exact.
  if (std::abs(number) > 9007199254740992.0 || std::trunc(number) != number) return std::nullopt;
  return static_cast<int64_t>(number);
}

std::optional<absl::string_view> AsString(const JsonElement& element) {
  std::string_view text;
  if (element.get(text) != simdjson::SUCCESS) return std::nullopt;
  return absl::string_view(text.data(), text.size());
}

absl::StatusOr<std::vector<int64_t>> AsIntegers(const JsonElement& element,
                                                absl::string_view param) {
  simdjson::dom::array array;
  if (element.get(array) != simdjson::SUCCESS) return WrongType(param, "a list of integers");
  std::vector<int64_t> integers;
  for (const JsonElement child : array) {
    const std::optional<int64_t> integer = AsInteger(child);
    if (!integer.has_value()) return WrongType(param, "a list of integers");
    integers.push_back(*integer);
  }
  return integers;
}

bool AsksForNothing(const JsonElement& element) {
  if (element.is_null()) return true;
  bool flag;
  if (element.get(flag) == simdjson::SUCCESS) return !flag;
  if (const auto text = AsString(element)) return text->empty();
  simdjson::dom::array array;
  if (element.get(array) == simdjson::SUCCESS) return array.begin() == array.end();
  simdjson::dom::object object;
  if (element.get(object) == simdjson::SUCCESS) return object.begin() == object.end();
  return false;
}

std::optional<JsonElement> JsonObjectReader::Find(absl::string_view key) const {
  JsonElement element;
  if (object_.at_key(std::string_view(key.data(), key.size())).get(element) != simdjson::SUCCESS ||
      element.is_null()) {
    return std::nullopt;
  }
  return element;
}

std::string JsonObjectReader::Param(absl::string_view key) const {
  return absl::StrCat(prefix_, key);
}

absl::Status JsonObjectReader::Read(absl::string_view key, bool* field) const {
  const std::optional<JsonElement> element = Find(key);
  if (!element.has_value()) return absl::OkStatus();
  if (element->get(*field) != simdjson::SUCCESS) return WrongType(Param(key), "true or false");
  return absl::OkStatus();
}

absl::Status JsonObjectReader::Read(absl::string_view key, std::optional<bool>* field) const {
  if (!Find(key).has_value()) return absl::OkStatus();
  bool value = false;
  SLUICE_RETURN_IF_ERROR(Read(key, &value));
  *field = value;
  return absl::OkStatus();
}

absl::Status JsonObjectReader::Read(absl::string_view key, std::string* field) const {
  const std::optional<JsonElement> element = Find(key);
  if (!element.has_value()) return absl::OkStatus();
  const std::optional<absl::string_view> text = AsString(*element);
  if (!text.has_value()) return WrongType(Param(key), "a string");
  *field = std::string(*text);
  return absl::OkStatus();
}

absl::Status JsonObjectReader::Read(absl::string_view key, std::optional<double>* field) const {
  const std::optional<JsonElement> element = Find(key);
  if (!element.has_value()) return absl::OkStatus();
  double number;
  if (element->get(number) != simdjson::SUCCESS) return WrongType(Param(key), "a number");
  *field = number;
  return absl::OkStatus();
}

absl::Status JsonObjectReader::Read(absl::string_view key, std::optional<int64_t>* field) const {
  const std::optional<JsonElement> element = Find(key);
  if (!element.has_value()) return absl::OkStatus();
  const std::optional<int64_t> integer = AsInteger(*element);
  if (!integer.has_value()) return WrongType(Param(key), "an integer");
  *field = *integer;
  return absl::OkStatus();
}

absl::Status JsonObjectReader::Read(absl::string_view key, std::vector<int64_t>* field) const {
  const std::optional<JsonElement> element = Find(key);
  if (!element.has_value()) return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(*field, AsIntegers(*element, Param(key)));
  return absl::OkStatus();
}

}  // namespace sluice::router
