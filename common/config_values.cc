// The kinds of value a key can have: how each is read and how it is printed back.
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/config.h"

namespace sluice {
namespace {

struct ByteUnit {
  const char* suffix;
  uint64_t bytes;
};
constexpr ByteUnit kByteUnits[] = {
    {"TiB", uint64_t{1} << 40},
    {"GiB", uint64_t{1} << 30},
    {"MiB", uint64_t{1} << 20},
    {"KiB", uint64_t{1} << 10},
    {"B", 1},
};

absl::Status Invalid(absl::string_view value, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat("'", value, "' is not ", expected));
}

// Always quoted, so that no text is mistaken for another YAML type.
std::string YamlString(absl::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\x%02x", static_cast<unsigned char>(c));
      out += escaped;
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
  return out;
}

// Shortest text that reads back as the same number.
std::string NumberText(double value) {
  char buffer[64];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, result.ptr);
}

template <typename Int>
absl::Status ParseInt(absl::string_view text, Int low, Int high, Int* field) {
  Int value;
  if (!absl::SimpleAtoi(text, &value)) {
    return Invalid(text, absl::StrCat("an integer from ", low, " to ", high));
  }
  if (value < low || value > high) {
    return absl::InvalidArgumentError(
        absl::StrCat(value, " is out of range: from ", low, " to ", high));
  }
  *field = value;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ByteSize> ParseByteSize(absl::string_view text) {
  constexpr char kExpected[] = "a byte size such as 512, 64KiB, 8MiB or 2GiB";
  const absl::string_view trimmed = absl::StripAsciiWhitespace(text);
  size_t num_digits = 0;
  while (num_digits < trimmed.size() && absl::ascii_isdigit(trimmed[num_digits])) ++num_digits;
  uint64_t count;
  if (!absl::SimpleAtoi(trimmed.substr(0, num_digits), &count)) return Invalid(text, kExpected);
  absl::string_view suffix = absl::StripAsciiWhitespace(trimmed.substr(num_digits));
  if (suffix.empty()) suffix = "B";
  for (const ByteUnit& unit : kByteUnits) {
    if (suffix != unit.suffix) continue;
    if (count > std::numeric_limits<uint64_t>::max() / unit.bytes) {
      return absl::InvalidArgumentError(absl::StrCat("'", text, "' is too large"));
    }
    return ByteSize{count * unit.bytes};
  }
  return Invalid(text, kExpected);
}

std::string FormatByteSize(ByteSize size) {
  for (const ByteUnit& unit : kByteUnits) {
    if (unit.bytes > 1 && size.bytes >= unit.bytes && size.bytes % unit.bytes == 0) {
      return absl::StrCat(size.bytes / unit.bytes, unit.suffix);
    }
  }
  return absl::StrCat(size.bytes);
}

void ConfigSchema::Add(std::string key, bool* field, std::string why) {
  AddEntry({.key = std::move(key),
            .why = std::move(why),
            .type_hint = "true|false",
            .kind = Kind::kBool,
            .parse =
                [field](absl::string_view text) {
                  // SimpleAtob also takes yes/no, y/n, t/f, 1/0; "on" and "off" are YAML's own.
                  if (text == "on" || text == "off") {
                    *field = text == "on";
                  } else if (!absl::SimpleAtob(text, field)) {
                    return Invalid(text, "true or false");
                  }
                  return absl::OkStatus();
                },
            .print = [field] { return std::string(*field ? "true" : "false"); }});
}

void ConfigSchema::Add(std::string key, std::string* field, std::string why) {
  AddEntry({.key = std::move(key),
            .why = std::move(why),
            .type_hint = "text",
            .parse =
                [field](absl::string_view text) {
                  *field = std::string(text);
                  return absl::OkStatus();
                },
            .print = [field] { return YamlString(*field); }});
}

void ConfigSchema::Add(std::string key, absl::Duration* field, std::string why) {
  AddEntry({.key = std::move(key),
            .why = std::move(why),
            .type_hint = "duration",
            .parse =
                [field](absl::string_view text) {
                  absl::Duration value;
                  if (!absl::ParseDuration(text, &value) || value < absl::ZeroDuration() ||
                      value == absl::InfiniteDuration()) {
                    return Invalid(text, "a duration with a unit, such as 250ms, 2s or 1m30s");
                  }
                  *field = value;
                  return absl::OkStatus();
                },
            .print = [field] { return absl::FormatDuration(*field); }});
}

void ConfigSchema::Add(std::string key, ByteSize* field, std::string why) {
  AddEntry({.key = std::move(key),
            .why = std::move(why),
            .type_hint = "bytes",
            .parse =
                [field](absl::string_view text) {
                  absl::StatusOr<ByteSize> value = ParseByteSize(text);
                  if (value.ok()) *field = *value;
                  return value.status();
                },
            .print = [field] { return FormatByteSize(*field); }});
}

void ConfigSchema::Add(std::string key, std::vector<std::string>* field, std::string why) {
  AddEntry({.key = std::move(key),
            .why = std::move(why),
            .type_hint = "list a,b,c",
            .kind = Kind::kList,
            .parse =
                [field](absl::string_view text) {
                  std::vector<std::string> items;
                  for (absl::string_view item : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
                    items.emplace_back(absl::StripAsciiWhitespace(item));
                  }
                  *field = std::move(items);
                  return absl::OkStatus();
                },
            .print =
                [field] {
                  return absl::StrCat("[",
                                      absl::StrJoin(*field, ", ",
                                                    [](std::string* out, const std::string& item) {
                                                      out->append(YamlString(item));
                                                    }),
                                      "]");
                }});
}

void ConfigSchema::Add(std::string key, int64_t* field, std::string why, int64_t low,
                       int64_t high) {
  AddEntry({.key = std::move(key),
            .why = std::move(why),
            .type_hint = absl::StrCat("int ", low, "..", high),
            .parse = [=](absl::string_view text) { return ParseInt(text, low, high, field); },
            .print = [field] { return absl::StrCat(*field); }});
}

void ConfigSchema::Add(std::string key, int* field, std::string why, int low, int high) {
  AddEntry({.key = std::move(key),
            .why = std::move(why),
            .type_hint = absl::StrCat("int ", low, "..", high),
            .parse = [=](absl::string_view text) { return ParseInt(text, low, high, field); },
            .print = [field] { return absl::StrCat(*field); }});
}

void ConfigSchema::Add(std::string key, double* field, std::string why, double low, double high) {
  AddEntry(
      {.key = std::move(key),
       .why = std::move(why),
       .type_hint = absl::StrCat("number ", NumberText(low), "..", NumberText(high)),
       .parse =
           [=](absl::string_view text) {
             double value;
             if (!absl::SimpleAtod(text, &value) || std::isnan(value)) {
               return Invalid(
                   text, absl::StrCat("a number from ", NumberText(low), " to ", NumberText(high)));
             }
             if (value < low || value > high) {
               return absl::InvalidArgumentError(absl::StrCat(
                   text, " is out of range: from ", NumberText(low), " to ", NumberText(high)));
             }
             *field = value;
             return absl::OkStatus();
           },
       .print = [field] { return NumberText(*field); }});
}

void ConfigSchema::AddChoice(std::string key, std::string* field, std::vector<std::string> choices,
                             std::string why) {
  std::string names = absl::StrJoin(choices, "|");
  AddEntry({.key = std::move(key),
            .why = std::move(why),
            .type_hint = names,
            .parse =
                [field, choices = std::move(choices), names](absl::string_view text) {
                  if (!absl::c_linear_search(choices, text)) {
                    return Invalid(text, absl::StrCat("one of ", names));
                  }
                  *field = std::string(text);
                  return absl::OkStatus();
                },
            .print = [field] { return YamlString(*field); }});
}

}  // namespace sluice
