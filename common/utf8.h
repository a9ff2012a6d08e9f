// UTF-8: code points one by one, and the lossy decoding of bytes that may be anything, such as
// those of a token or of a peer. A protobuf `string` must be valid, or its reader refuses the
// message. Ill-formed input is split into maximal subparts (Unicode chapter 3, table 3-8; WHATWG
// and Rust's from_utf8_lossy do the same): each becomes one U+FFFD. Pure functions, any thread.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace sluice {

struct Utf8Char {
  char32_t code_point = 0;  // U+FFFD if ill-formed
  int size_bytes = 0;       // 1..4; of an ill-formed sequence, its maximal subpart
  bool valid = false;
  // Ill-formed only because `text` ended: more bytes could complete the character.
  bool incomplete = false;
};

// The first character of `text`. REQUIRES: not empty.
Utf8Char DecodeUtf8Char(absl::string_view text);

// REQUIRES: a Unicode scalar value.
void AppendUtf8(char32_t code_point, std::string* text);

bool IsValidUtf8(absl::string_view text);

// Length of the longest prefix that does not end inside a character that more bytes could complete;
// at most 3 bytes shorter than `bytes`.
size_t CompleteUtf8Prefix(absl::string_view bytes);

// Appends `bytes` to *text, each maximal ill-formed subpart as U+FFFD.
void AppendUtf8Lossy(absl::string_view bytes, std::string* text);

// `bytes` as valid UTF-8 of at most `max_bytes`: decoded as above, then cut at a character's end.
std::string BoundedUtf8(absl::string_view bytes, size_t max_bytes);

}  // namespace sluice
