#include "common/utf8.h"

#include <cstdint>

namespace sluice {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";

// Table 3-7 of the Unicode standard: how long a sequence is and what its second byte may be.
// Surrogates, overlong forms and values beyond U+10FFFF are excluded by the second byte alone.
struct LeadByte {
  int size_bytes;  // 0: no sequence begins with this byte
  uint8_t second_low;
  uint8_t second_high;
};

LeadByte LeadByteOf(uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Char DecodeUtf8Char(absl::string_view text) {
  const auto byte_at = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte_at(0);
  if (lead < 0x80) return {lead, 1, true, false};
  const LeadByte form = LeadByteOf(lead);
  if (form.size_bytes == 0) return {0xFFFD, 1, false, false};
  char32_t code_point = lead & (0x7F >> form.size_bytes);
  for (int i = 1; i < form.size_bytes; ++i) {
    if (static_cast<size_t>(i) >= text.size()) return {0xFFFD, i, false, true};
    const uint8_t low = i == 1 ? form.second_low : 0x80;
    const uint8_t high = i == 1 ? form.second_high : 0xBF;
    if (byte_at(i) < low || byte_at(i) > high) return {0xFFFD, i, false, false};
    code_point = (code_point << 6) | (byte_at(i) & 0x3F);
  }
  return {code_point, form.size_bytes, true, false};
}

void AppendUtf8(char32_t code_point, std::string* text) {
  const auto tail = [&](int shift) {
    text->push_back(static_cast<char>(0x80 | ((code_point >> shift) & 0x3F)));
  };
  if (code_point < 0x80) {
    text->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    text->push_back(static_cast<char>(0xC0 | (code_point >> 6)));
    tail(0);
  } else if (code_point < 0x10000) {
    text->push_back(static_cast<char>(0xE0 | (code_point >> 12)));
    tail(6);
    tail(0);
  } else {
    text->push_back(static_cast<char>(0xF0 | (code_point >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

bool IsValidUtf8(absl::string_view text) {
  while (!text.empty()) {
    const Utf8Char next = DecodeUtf8Char(text);
    if (!next.valid) return false;
    text.remove_prefix(next.size_bytes);
  }
  return true;
}

size_t CompleteUtf8Prefix(absl::string_view bytes) {
  // An incomplete character begins with the last lead byte, at most 3 bytes before the end.
  const size_t first = bytes.size() > 3 ? bytes.size() - 3 : 0;
  for (size_t i = bytes.size(); i-- > first;) {
    const uint8_t byte = static_cast<uint8_t>(bytes[i]);
    if (byte < 0x80) return bytes.size();
    if (byte < 0xC0) continue;  // a continuation byte: the lead is before it
    const Utf8Char last = DecodeUtf8Char(bytes.substr(i));
    const bool reaches_end = i + last.size_bytes == bytes.size();
    return last.incomplete && reaches_end ? i : bytes.size();
  }
  return bytes.size();
}

void AppendUtf8Lossy(absl::string_view bytes, std::string* text) {
  while (!bytes.empty()) {
    size_t valid_bytes = 0;
    Utf8Char next;
    while (valid_bytes < bytes.size()) {
      next = DecodeUtf8Char(bytes.substr(valid_bytes));
      if (!next.valid) break;
      valid_bytes += next.size_bytes;
    }
    text->append(bytes.data(), valid_bytes);
    bytes.remove_prefix(valid_bytes);
    if (bytes.empty()) return;
    text->append(kReplacement);
    bytes.remove_prefix(next.size_bytes);
  }
}

std::string BoundedUtf8(absl::string_view bytes, size_t max_bytes) {
  std::string text;
  AppendUtf8Lossy(bytes, &text);
  if (text.size() > max_bytes) {
    text.resize(CompleteUtf8Prefix(absl::string_view(text).substr(0, max_bytes)));
  }
  return text;
}

}  // namespace sluice
