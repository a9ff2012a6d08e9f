// GPT-2's alphabet: each of the 256 bytes as one printable character, so that byte-level tokens can
// be stored as JSON strings. Immutable; any thread.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace sluice {

// The character of a byte: itself where it is printable (33-126, 161-172, 174-255); the others take
// U+0100, U+0101, ... in increasing order.
const std::array<char32_t, 256>& ByteAlphabet();

// The bytes that `token` spells; nothing if any character is outside the alphabet.
std::optional<std::string> BytesFromAlphabet(absl::string_view token);

// The bytes of an entry of a byte-level vocabulary: what it spells in the alphabet, or else itself,
// as control tokens stand there.
std::string BytesOfVocabEntry(absl::string_view text);

}  // namespace sluice
