#include "services/router/http/json_writer.h"

#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace sluice::router {

void AppendJsonString(absl::string_view text, std::string* out) {
  constexpr char kHex[] = "0123456789abcdef";
  out->push_back('"');
  size_t copied = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    const bool line_separator = c == 0xE2 && i + 2 < text.size() && text[i + 1] == '\x80' &&
                                (text[i + 2] == '\xA8' || text[i + 2] == '\xA9');
    if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7F && !line_separator) continue;
    out->append(text.data() + copied, i - copied);
    copied = i + 1;
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      case 0xE2:
        out->append(text[i + 2] == '\xA8' ? "\\u2028" : "\\u2029");
        i += 2;
        copied = i + 1;
        break;
      default:
        out->append("\\u00");
        out->push_back(kHex[c >> 4]);
        out->push_back(kHex[c & 15]);
    }
  }
  out->append(text.data() + copied, text.size() - copied);
  out->push_back('"');
}

void JsonWriter::Comma() {
  if (out_->empty()) return;
  const char last = out_->back();
  if (last != '{' && last != '[' && last != ':' && last != ',') out_->push_back(',');
}

JsonWriter& JsonWriter::Open(char bracket) {
  Comma();
  out_->push_back(bracket);
  return *this;
}

JsonWriter& JsonWriter::Close(char bracket) {
  out_->push_back(bracket);
  return *this;
}

JsonWriter& JsonWriter::Key(absl::string_view key) {
  Comma();
  AppendJsonString(key, out_);
  out_->push_back(':');
  return *this;
}

JsonWriter& JsonWriter::String(absl::string_view value) {
  Comma();
  AppendJsonString(value, out_);
  return *this;
}

JsonWriter& JsonWriter::Int(int64_t value) {
  Comma();
  absl::StrAppend(out_, value);
  return *this;
}

JsonWriter& JsonWriter::Bool(bool value) { return Raw(value ? "true" : "false"); }

JsonWriter& JsonWriter::Null() { return Raw("null"); }

JsonWriter& JsonWriter::Float(float value) {
  if (std::isnan(value)) return Null();
  if (std::isinf(value)) return Raw(value < 0 ? "-9999.0" : "9999.0");
  char buffer[32];
  const std::to_chars_result result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return Raw(absl::string_view(buffer, result.ptr - buffer));
}

JsonWriter& JsonWriter::Raw(absl::string_view json) {
  Comma();
  absl::StrAppend(out_, json);
  return *this;
}

}  // namespace sluice::router
