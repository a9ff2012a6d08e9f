// General categories of code points as the pre-tokenizer's regular expressions use them
// (Unicode 16.0, the version in Hugging Face's regex engine; another version would give other
// tokens). Immutable tables; any thread.
#pragma once

#include <cstdint>

namespace sluice {

// Bits of one code point's classes. White space (\s) overlaps the others.
enum UnicodeClass : uint8_t {
  kLetter = 1,       // \p{L}
  kMark = 2,         // \p{M}
  kNumber = 4,       // \p{N}
  kPunctuation = 8,  // \p{P}
  kSymbol = 16,      // \p{S}
  kWhiteSpace = 32,  // \s
};

// 0 for a code point of none of the classes, or beyond U+10FFFF.
uint8_t UnicodeClassesOf(char32_t code_point);

// The generated data: disjoint and ascending.
struct UnicodeRange {
  uint32_t first;
  uint32_t last;  // inclusive
  uint8_t classes;
};
extern const UnicodeRange kUnicodeRanges[];
extern const int kNumUnicodeRanges;

}  // namespace sluice
