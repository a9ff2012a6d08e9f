// Builds compact JSON on one line, by appending. Commas are placed by looking at the last character
// written, so there is no state to keep. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace sluice::router {

// Appends `text` with quotes. REQUIRES: valid UTF-8. U+2028 and U+2029 are escaped too: some
// clients read a stream line by line, and to them these end a line.
void AppendJsonString(absl::string_view text, std::string* out);

class JsonWriter {
 public:
  explicit JsonWriter(std::string* out) : out_(out) {}

  JsonWriter& BeginObject() { return Open('{'); }
  JsonWriter& EndObject() { return Close('}'); }
  JsonWriter& BeginArray() { return Open('['); }
  JsonWriter& EndArray() { return Close(']'); }
  JsonWriter& Key(absl::string_view key);
  JsonWriter& String(absl::string_view value);
  JsonWriter& Int(int64_t value);
  JsonWriter& Bool(bool value);
  JsonWriter& Null();
  // Shortest form that gives the same float back; JSON has no infinity, so -9999 stands for -inf
  // (as in vLLM) and null for NaN.
  JsonWriter& Float(float value);
  // `json` must be one complete value.
  JsonWriter& Raw(absl::string_view json);

 private:
  JsonWriter& Open(char bracket);
  JsonWriter& Close(char bracket);
  void Comma();

  std::string* const out_;
};

}  // namespace sluice::router
